//! The `Retry-After` parser against arbitrary text, and against dates formatted independently.
//!
//! Runs 256 cases a property; `PROPTEST_CASES=100000` soaks.

use proptest::prelude::*;
use tidegate_core::retry_after::{MAX_RETRY_AFTER, parse};
use tidegate_core::time::Span;

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Year, month from 0, day, found by walking the calendar from 1970.
fn civil(mut days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    loop {
        let length = match month {
            1 => 28 + u64::from(leap(year)),
            3 | 5 | 8 | 10 => 30,
            _ => 31,
        };
        if days < length {
            return (year, month, days + 1);
        }
        days -= length;
        month += 1;
    }
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Fixdate,
    Rfc850,
    Asctime,
}

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![Just(Form::Fixdate), Just(Form::Rfc850), Just(Form::Asctime)]
}

fn format(unix: u64, form: Form) -> String {
    let (year, month, day) = civil(unix / 86_400);
    let month = MONTHS[month];
    let weekday = DAYS[(unix / 86_400 % 7) as usize];
    let clock = format!("{:02}:{:02}:{:02}", unix / 3600 % 24, unix / 60 % 60, unix % 60);
    match form {
        Form::Fixdate => format!("{}, {day:02} {month} {year} {clock} GMT", &weekday[..3]),
        Form::Rfc850 => format!("{weekday}, {day:02}-{month}-{:02} {clock} GMT", year % 100),
        Form::Asctime => format!("{} {month} {day:2} {clock} {year}", &weekday[..3]),
    }
}

/// Until the year 2500.
fn unix() -> impl Strategy<Value = u64> {
    0u64..16_725_225_600
}

/// Text made of the pieces that a value is made of.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[0-9]{1,4}",
        "[0-9]{0,40}",
        "[-+., :\t]",
        prop::sample::select(vec![
            "Sun", "Sunday", ", ", "06", "Nov", "1994", "08:49:37", "GMT", "-0000", "94", "1e309", "NaN", "٣", "\u{0}"
        ])
        .prop_map(String::from),
        (unix(), form()).prop_map(|(unix, form)| format(unix, form)),
        any::<String>(),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Any text, any date and any wall clock give a wait of at most 24 hours, or none.
    #[test]
    fn never_panics_and_never_exceeds_the_cap(
        value in prop_oneof![hostile(), any::<String>(), "\\PC*"],
        date in prop::option::of(prop_oneof![hostile(), any::<String>()]),
        wall in prop_oneof![any::<u64>(), unix()],
    ) {
        let wait = parse(&value, date.as_deref(), wall);
        prop_assert!(wait.is_none_or(|wait| wait <= MAX_RETRY_AFTER));
        if value.len() > 128 {
            prop_assert_eq!(wait, None);
        }
    }

    /// A decimal number is that many seconds, to the nanosecond.
    #[test]
    fn reads_decimals(whole in 0u64..86_400, nanos in 0u64..1_000_000_000, digits in 0usize..10) {
        let shown = format!("{nanos:09}");
        let (kept, text) = match digits {
            0 => (0, whole.to_string()),
            _ => (shown[..digits].parse::<u64>().unwrap() * 10u64.pow(9 - digits as u32), format!("{whole}.{}", &shown[..digits])),
        };
        prop_assert_eq!(parse(&text, None, 0), Some(Span::from_nanos(whole * 1_000_000_000 + kept)));
    }

    /// A date in any form counts from the response's date in any form, and from the wall clock when there is none. Dates of two
    /// digits must lie within 50 years of what they count from.
    #[test]
    fn reads_dates(served in unix(), ahead in -90_000i64..90_000, skew in -1_000_000_000i64..1_000_000_000, forms in (form(), form())) {
        let target = served.saturating_add_signed(ahead);
        let value = format(target, forms.0);
        let wait = Some(Span::from_secs(target.saturating_sub(served).min(86_400)));
        prop_assert_eq!(parse(&value, None, served), wait);
        let date = format(served, forms.1);
        prop_assert_eq!(parse(&value, Some(&date), served.saturating_add_signed(skew)), wait);
        prop_assert_eq!(parse(&value, Some("no date"), served), wait);
    }
}
