//! Which of the backends that are ready serves a request.

/// A backend that could take the request now.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its id, in order of declaration.
    pub backend: u16,
    /// Attempts running on it.
    pub in_flight: u32,
    /// Its share when several are ready; > 0.
    pub weight: f64,
    /// The request's last attempt failed here.
    pub failed: bool,
    /// The submitter wants it here.
    pub preferred: bool,
}

impl Candidate {
    fn load(&self) -> f64 {
        f64::from(self.in_flight) / self.weight
    }
}

/// Picks one that did not just fail, then the preferred one, then the least in flight by weight, then the one that was declared first.
pub fn choose(candidates: impl Iterator<Item = Candidate>) -> Option<u16> {
    candidates
        .reduce(|best, next| {
            let order = |one: &Candidate| (one.failed, !one.preferred, one.load());
            if order(&next) < order(&best) { next } else { best }
        })
        .map(|best| best.backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(backend: u16, in_flight: u32, weight: f64, failed: bool) -> Candidate {
        Candidate { backend, in_flight, weight, failed, preferred: false }
    }

    #[test]
    fn least_in_flight_by_weight_then_declaration() {
        let pick = |list: &[Candidate]| choose(list.iter().copied());
        assert_eq!(pick(&[]), None);
        assert_eq!(pick(&[candidate(0, 2, 1.0, false), candidate(1, 1, 1.0, false)]), Some(1));
        assert_eq!(pick(&[candidate(0, 4, 4.0, false), candidate(1, 2, 1.0, false)]), Some(0));
        assert_eq!(pick(&[candidate(0, 1, 1.0, false), candidate(1, 1, 1.0, false)]), Some(0));
    }

    #[test]
    fn the_backend_that_failed_is_avoided_but_not_refused() {
        assert_eq!(choose([candidate(0, 0, 1.0, true), candidate(1, 9, 1.0, false)].into_iter()), Some(1));
        assert_eq!(choose([candidate(0, 0, 1.0, true)].into_iter()), Some(0));
    }

    #[test]
    fn the_preferred_backend_wins_over_load_but_not_over_a_failure() {
        let wanted = |failed| Candidate { preferred: true, ..candidate(1, 9, 1.0, failed) };
        assert_eq!(choose([candidate(0, 0, 1.0, false), wanted(false)].into_iter()), Some(1));
        assert_eq!(choose([candidate(0, 0, 1.0, false), wanted(true)].into_iter()), Some(0));
    }
}
