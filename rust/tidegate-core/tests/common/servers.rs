//! Strict servers: each counts the messages that it accepts, in the order in which they arrive.

use tidegate_core::limit::{Kind, Limit};

pub(crate) enum Server {
    /// At most `amount` in any (t - period, t].
    Log { amount: u64, period: u64, accepted: Vec<(u64, u64)> },
    /// At most `amount` in each window; a window begins with the first message after the last one's end.
    Anchored { amount: u64, period: u64, start: Option<u64>, count: u64 },
    /// At most `amount` in each window; windows begin at multiples of the period, shifted by `phase`.
    Aligned { amount: u64, period: u64, phase: u64, window: u64, count: u64 },
    /// A token bucket: `level` in units of 1/period tokens.
    Bucket { amount: u64, period: u64, burst: u64, level: u128, seen: u64 },
    /// GCRA: `tat` in units of 1/amount ns.
    Gcra { amount: u64, period: u64, burst: u64, tat: u128 },
}

impl Server {
    /// One of the servers that count as `limit` says.
    pub(crate) fn of(limit: &Limit, which: u8, phase: u64) -> Server {
        let (amount, period, burst) = (u64::from(limit.amount()), limit.period().as_nanos(), u64::from(limit.burst()));
        match (limit.kind(), which % 3) {
            (Kind::Window, 0) => Server::Log { amount, period, accepted: Vec::new() },
            (Kind::Window, 1) => Server::Anchored { amount, period, start: None, count: 0 },
            (Kind::Window, _) => Server::Aligned { amount, period, phase: phase % period, window: 0, count: 0 },
            (_, 0) => Server::Gcra { amount, period, burst, tat: 0 },
            (_, _) => {
                let level = u128::from(burst) * u128::from(period);
                Server::Bucket { amount, period, burst, level, seen: 0 }
            }
        }
    }

    pub(crate) fn accepts(&mut self, now: u64, cost: u64) -> bool {
        match self {
            Server::Log { amount, period, accepted } => {
                let recent = accepted.iter().rev().take_while(|(then, _)| now - then < *period);
                let fits = recent.map(|(_, cost)| cost).sum::<u64>() + cost <= *amount;
                if fits {
                    accepted.push((now, cost));
                }
                fits
            }
            Server::Anchored { amount, period, start, count } => {
                if start.is_none_or(|start| now - start >= *period) {
                    *start = Some(now);
                    *count = 0;
                }
                *count += cost;
                *count <= *amount
            }
            Server::Aligned { amount, period, phase, window, count } => {
                let current = (now + *phase) / *period;
                if current != *window {
                    *window = current;
                    *count = 0;
                }
                *count += cost;
                *count <= *amount
            }
            Server::Bucket { amount, period, burst, level, seen } => {
                let refilled = *level + u128::from(now - *seen) * u128::from(*amount);
                *seen = now;
                *level = refilled.min(u128::from(*burst) * u128::from(*period));
                let price = u128::from(cost) * u128::from(*period);
                let fits = price <= *level;
                if fits {
                    *level -= price;
                }
                fits
            }
            Server::Gcra { amount, period, burst, tat } => {
                let now = u128::from(now) * u128::from(*amount);
                let next = now.max(*tat) + u128::from(cost) * u128::from(*period);
                let fits = next <= now + u128::from(*burst) * u128::from(*period);
                if fits {
                    *tat = next;
                }
                fits
            }
        }
    }
}
