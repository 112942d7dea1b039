//! How what a dispatch visits grows with hosts and accounts: places in heaps, accounts, classes that are parked or wait again.

use super::{Answer, BackendSpec, ClassId, ColdStart, Engine, Flags, Leased, Options, Outcome, ScopedLimits, Spends, Submission};
use crate::limit::Limit;
use crate::queue::Order;
use crate::retry::Retry;
use crate::steps;
use crate::time::{Instant, Span};

const SECOND: Span = Span::from_secs(1);

struct Crawl {
    engine: Engine,
    class: ClassId,
    now: Instant,
}

impl Crawl {
    /// `per_host` messages a second to each host and account, `per_account` a second on each account.
    fn new(order: Order, accounts: u32, per_host: u32, per_account: u32) -> Crawl {
        let retry = Retry { attempts: 4, base: SECOND, cap: SECOND, budget_milli: 100 };
        let now = Instant::ORIGIN;
        let mut engine = Engine::new(&Options { capacity: usize::MAX / 2, order, retry, seed: 1 }, now);
        let per_host = Limit::bucket(per_host, SECOND, per_host).unwrap();
        let spec = BackendSpec {
            limits: vec![Limit::bucket(per_account, SECOND, per_account).unwrap()],
            concurrency: None,
            scoped: vec![ScopedLimits { scope: "host".into(), limits: vec![per_host] }],
            spends: Spends::Own(accounts),
            timeout: None,
            weight: 1.0,
            cold_start: ColdStart::AssumeEmpty,
        };
        let id = engine.add_backend(now, &spec);
        let class = engine.class(now, &[id], 1).unwrap();
        Crawl { engine, class, now }
    }

    fn submit(&mut self, hosts: usize, each: usize) {
        for host in (0..hosts).cycle().take(hosts * each) {
            assert_eq!(self.engine.room().reserve(1), 1);
            let (class, host) = (self.class, host.to_string());
            let scopes = [("host", host.as_str())];
            let (deadline, not_before, flags) = (Instant::FAR, Instant::ORIGIN, Flags::default());
            self.engine
                .submit(self.now, &Submission { class, priority: 9, deadline, not_before, flow: "f", scopes: &scopes, flags });
        }
    }

    /// Sends all that waits, with 100 on their way at any time; returns what one dispatch visited in the mean.
    fn mean_steps(&mut self) -> f64 {
        let mut running: Vec<Leased> = Vec::new();
        let (mut dispatched, mut next) = (0_u64, 0);
        steps::taken();
        while !self.engine.is_idle() {
            match self.engine.take(self.now) {
                Some(leased) => {
                    dispatched += 1;
                    running.push(leased);
                }
                None if running.is_empty() => self.now = self.engine.next_wake().expect("something waits").max(self.now),
                None => {}
            }
            let waits = self.engine.ledger().queued > 0 && self.engine.may_run();
            if running.len() > 100 || !(running.is_empty() || waits) {
                next += 7;
                let leased = running.swap_remove(next % running.len());
                self.engine.finish(self.now, leased.lease, Outcome::Ok, Answer::default(), false);
            }
            self.now = self.now + Span::from_nanos(300);
        }
        steps::taken() as f64 / dispatched as f64
    }
}

/// With 1000 times as many hosts, a dispatch visits at most as many more things as heaps are deeper, and half as many again.
fn grows_with_the_logarithm(order: &Order, accounts: u32, per_account: u32) {
    let [few, many] = [100, 100_000].map(|hosts| {
        let mut crawl = Crawl::new(order.clone(), accounts, 1, per_account);
        crawl.submit(hosts, 2);
        crawl.mean_steps()
    });
    assert!(few > 5.0, "{few} steps: they are not counted");
    assert!(many <= few + 1.5 * 1000_f64.log2(), "{few} steps a dispatch with few hosts, {many} with many");
}

/// Every host is held back once.
#[test]
fn hosts_that_are_held_back_cost_a_dispatch_their_logarithm() {
    grows_with_the_logarithm(&Order::Strict, 1, 1_000_000);
}

/// Every account is used up several times.
#[test]
fn accounts_and_hosts_of_one_flow_cost_a_dispatch_their_logarithm() {
    grows_with_the_logarithm(&Order::Fair(Vec::new()), 500, 50);
}
