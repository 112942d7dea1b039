//! A few cells of the conformance grid, each kind of server at least once. All of it: `make conformance`.

use tidegate_core::limit::Jitter;
use tidegate_core::sim::{Case, DELAYS, Serving, Shape};

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
