//! The largest matching of requests with permits, where what a request can use are a few ranges of permits.

/// No request.
const NONE: u32 = u32::MAX;

/// Numbers from 0, some of them struck out: finds the next one that is not.
struct Skip(Vec<u32>);

impl Skip {
    fn new(count: usize) -> Skip {
        Skip((0..=count as u32).collect())
    }

    /// The least number from `from` that is not struck out; one past the last if there is none.
    fn next(&mut self, from: u32) -> u32 {
        let mut at = from;
        while self.0[at as usize] != at {
            let after = self.0[self.0[at as usize] as usize];
            self.0[at as usize] = after;
            at = after;
        }
        at
    }

    fn strike(&mut self, number: u32) {
        self.0[number as usize] = number + 1;
    }
}

/// Where a search has come to.
struct Step {
    request: u32,
    /// The permit that it holds, by which it was found.
    via: u32,
    /// The range that is looked at.
    range: u32,
}

/// How many requests can have a permit each, at most: each one out of its own ranges, `[first, last)`, of `permits` permits. `of` has the
/// ranges of a request, and the order of requests is that in which they are tried first.
///
/// Searches augmenting paths depth first, in rounds in which no permit is looked at twice, and looks for a free one before anything else. Source:
/// Pothen and Fan, "Computing the block triangular form of a sparse matrix", 1990, here without any edge written down.
///
/// # Complexity
/// A round is nearly linear in requests, ranges and permits; there were at most some tens of rounds with all that was tried.
pub(super) fn size(of: &[Vec<[u32; 2]>], permits: usize) -> usize {
    let mut holder = vec![NONE; permits];
    let mut free = Skip::new(permits);
    let mut left: Vec<u32> = (0..of.len() as u32).collect();
    loop {
        let mut unseen = Skip::new(permits);
        let before = left.len();
        left.retain(|&request| !augment(request, of, &mut holder, &mut free, &mut unseen));
        if left.len() == before {
            return of.len() - before;
        }
    }
}

/// Gives a request a permit, if need be by giving those who hold some others.
fn augment(request: u32, of: &[Vec<[u32; 2]>], holder: &mut [u32], free: &mut Skip, unseen: &mut Skip) -> bool {
    let mut path = vec![Step { request, via: NONE, range: 0 }];
    while let Some(step) = path.last_mut() {
        let ranges = &of[step.request as usize];
        if step.range == 0
            && let Some(permit) = ranges.iter().find_map(|&[first, last]| Some(free.next(first)).filter(|permit| *permit < last))
        {
            free.strike(permit);
            let mut given = permit;
            for step in path.iter().rev() {
                holder[given as usize] = step.request;
                given = step.via;
            }
            return true;
        }
        let Some(&[first, last]) = ranges.get(step.range as usize) else {
            path.pop();
            continue;
        };
        let permit = unseen.next(first);
        if permit < last {
            unseen.strike(permit);
            path.push(Step { request: holder[permit as usize], via: permit, range: 0 });
        } else {
            step.range += 1;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same, by trying all.
    fn most(of: &[Vec<[u32; 2]>], used: u32) -> usize {
        let Some((ranges, others)) = of.split_first() else { return 0 };
        let permits = ranges.iter().flat_map(|&[first, last]| first..last).filter(|permit| used & (1 << permit) == 0);
        permits.map(|permit| 1 + most(others, used | (1 << permit))).fold(most(others, used), usize::max)
    }

    proptest! {
        #[test]
        fn no_other_matching_is_larger(of in prop::collection::vec(prop::collection::vec((0u32..6, 0u32..4), 0..3), 0..7)) {
            let of: Vec<Vec<[u32; 2]>> =
                of.iter().map(|ranges| ranges.iter().map(|&(first, length)| [first, (first + length).min(6)]).collect()).collect();
            prop_assert_eq!(size(&of, 6), most(&of, 0));
        }
    }
}
