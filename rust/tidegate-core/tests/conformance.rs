//! A few cells of the conformance grid, each kind of server at least once. All of it: `make conformance`.

use tidegate_core::limit::Jitter;
use tidegate_core::sim::{Case, DELAYS, Delay, Serving, Shape};
use tidegate_core::time::Span;

fn case(serving: Serving, shape: usize, line: usize) -> Case {
    Case {
        serving,
        shape: Shape::ALL[shape],
        delay: DELAYS[line].1,
        jitter: Jitter::None,
        is_declared: true,
        tells: false,
        counts_rejected: false,
    }
}

/// No server that counts as declared rejects a message, and nearly all is used that round trips leave.
#[test]
fn declared_kinds_are_never_rejected() {
    for serving in Serving::ALL {
        for (shape, line) in [(0, 0), (0, 1), (1, 2), (2, 3), (5, 1)] {
            if serving == Serving::Concurrency && shape > 0 {
                continue;
            }
            let outcome = case(serving, shape, line).run(7);
            assert_eq!(outcome.report.rejected, 0, "{serving} {shape} {line}");
            assert!(outcome.report.steps.is_empty());
            let share = outcome.of_reachable();
            assert!(share >= 0.995, "{serving} {shape} {line}: {share}");
            assert!(outcome.of_allowed() <= 1.0, "{serving} {shape} {line}");
        }
    }
}

/// A client that was not told the kind finds a stricter one that fits, at the price of what was in flight and a few more.
#[test]
fn undeclared_kinds_settle() {
    for serving in [Serving::Log, Serving::Anchored, Serving::Gcra, Serving::Counter] {
        for (shape, line) in [(0, 0), (0, 2), (1, 1)] {
            for (tells, counts_rejected) in [(false, false), (true, false), (false, true)] {
                let case = Case { is_declared: false, tells, counts_rejected, ..case(serving, shape, line) };
                let outcome = case.run(7);
                let report = &outcome.report;
                assert!(report.rejected <= report.in_flight_then + 10, "{serving} {shape} {line}: {report:?}");
                assert_eq!(report.since.1, 0);
                assert_eq!(report.rejected > 0, matches!(serving, Serving::Gcra | Serving::Counter));
                let share = outcome.of_reachable_since();
                assert!(share >= 0.95, "{serving} {shape} {line}: {share}");
            }
        }
    }
}

/// Of a line whose ways to the server differ little, next to nothing is lost; `auto` finds that out by itself, and learns to keep off one
/// that jumps.
#[test]
fn jitter_credit_gains_what_round_trips_cost() {
    let credited = |serving, shape, line: usize, jitter| Case { jitter, ..case(serving, shape, line) };
    for (serving, shape, least) in [(Serving::Log, 0, 0.98), (Serving::TokenBucket, 3, 0.99), (Serving::Gcra, 5, 0.98)] {
        for jitter in [Jitter::Known(Span::ZERO), Jitter::Auto] {
            let outcome = credited(serving, shape, 0, jitter).run(7);
            assert_eq!(outcome.report.rejected, 0);
            assert!(outcome.of_allowed() >= least, "{serving} {shape} {jitter:?}: {}", outcome.of_allowed());
        }
    }
    for line in [1, 2, 3] {
        assert_eq!(credited(Serving::TokenBucket, 3, line, Jitter::Auto).run(7).report.rejected, 0);
    }
    let jumping = Delay::Jumping(Span::from_millis(40), Span::from_millis(120));
    let jumps = Case { delay: jumping, ..credited(Serving::TokenBucket, 3, 0, Jitter::Auto) }.run(7);
    assert!((1..10).contains(&jumps.report.rejected), "off after the first jump: {:?}", jumps.report);
    let bounded = Jitter::Known(jumping.jitter().unwrap());
    assert_eq!(Case { delay: jumping, ..credited(Serving::TokenBucket, 3, 0, bounded) }.run(7).report.rejected, 0);
}
