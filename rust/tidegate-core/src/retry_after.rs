//! The `Retry-After` header (RFC 9110 §10.2.3), read without ever failing loudly.
//!
//! Accepted beyond the RFC, because servers send it: decimals, any zone name (read as UTC) or none, numeric zones, and
//! several copies that an HTTP library joined with commas (the longest counts).

use crate::time::Span;

/// Longest wait that is honoured; more is clamped to it.
pub const MAX_RETRY_AFTER: Span = Span::from_secs(MAX_SECS);

const MAX_SECS: u64 = 24 * 3600;
/// Longest value that is looked at, in bytes.
const MAX_LEN: usize = 128;
/// Later years are read as this one: either is past the cap.
const LAST_YEAR: u64 = 9999;

/// How long a `Retry-After` header asks to wait from the receipt of its response.
///
/// A number is seconds. A date counts from `date`, the response's own `Date` header, when that can be read, else from
/// `wall_unix`, this machine's seconds since 1970; one in the past is zero. Nothing exceeds [`MAX_RETRY_AFTER`].
/// `None` when the value is not one of these, is negative or is longer than 128 bytes.
///
/// # Complexity
/// Linear in at most 128 bytes; allocates nothing.
///
/// # Examples
/// ```
/// use tidegate_core::{retry_after::parse, time::Span};
///
/// assert_eq!(parse("1.5", None, 0), Some(Span::from_millis(1_500)));
/// let served = Some("Sun, 06 Nov 1994 08:49:00 GMT");
/// assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT", served, 0), Some(Span::from_secs(37)));
/// assert_eq!(parse("soon", None, 0), None);
/// ```
pub fn parse(value: &str, date: Option<&str>, wall_unix: u64) -> Option<Span> {
    let wall = i64::try_from(wall_unix).unwrap_or(i64::MAX);
    let base = date.and_then(|date| http_date(date, wall)).unwrap_or(wall);
    let mut rest = Text::new(value)?;
    let mut longest = rest.wait(base)?;
    while rest.byte(b',') {
        rest.blanks();
        longest = longest.max(rest.wait(base)?);
    }
    rest.end().then_some(longest)
}

/// Seconds since 1970 of a `Date` header.
fn http_date(value: &str, wall: i64) -> Option<i64> {
    let mut rest = Text::new(value)?;
    let date = rest.date(wall)?;
    rest.end().then_some(date)
}

/// What is left to read of a header's value.
struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    fn new(value: &'a str) -> Option<Text<'a>> {
        (value.len() <= MAX_LEN).then(|| Text(value.trim_matches([' ', '\t']).as_bytes()))
    }

    fn wait(&mut self, base: i64) -> Option<Span> {
        let wait = match self.0.first()? {
            b'0'..=b'9' => self.seconds()?,
            _ => {
                let ahead = self.date(base)?.saturating_sub(base);
                Span::from_secs(u64::try_from(ahead).unwrap_or(0))
            }
        };
        self.blanks();
        Some(wait.min(MAX_RETRY_AFTER))
    }

    /// `1*DIGIT [ "." 1*DIGIT ]`, rounded up to a nanosecond.
    fn seconds(&mut self) -> Option<Span> {
        let whole = Span::from_secs(decimal(self.digits()?));
        if !self.byte(b'.') {
            return Some(whole);
        }
        let digits = self.digits()?;
        let (nanos, beyond) = digits.split_at(digits.len().min(9));
        let scale = 10_u64.pow(9 - nanos.len() as u32);
        let up = u64::from(beyond.iter().any(|digit| *digit != b'0'));
        Some(whole + Span::from_nanos(decimal(nanos) * scale + up))
    }

    /// IMF-fixdate, RFC 850 or asctime, in seconds since 1970. The name of the day is not checked.
    fn date(&mut self, reference: i64) -> Option<i64> {
        self.word()?;
        if !self.byte(b',') {
            return self.asctime();
        }
        self.blanks();
        let day = self.number()?;
        let dashed = self.0.first() == Some(&b'-');
        self.separator(dashed)?;
        let month = self.month()?;
        self.separator(dashed)?;
        let digits = self.digits()?;
        let year = match digits.len() {
            2 => nearest_century(decimal(digits) as i64, reference),
            _ => decimal(digits).min(LAST_YEAR) as i64,
        };
        self.blank()?;
        let clock = self.clock()?;
        Some(unix(year, month, day, clock)? - self.zone()?)
    }

    /// What follows the name of the day: `Nov  6 08:49:37 1994`.
    fn asctime(&mut self) -> Option<i64> {
        self.blank()?;
        let month = self.month()?;
        self.blank()?;
        let day = self.number()?;
        self.blank()?;
        let clock = self.clock()?;
        self.blank()?;
        let year = decimal(self.digits()?).min(LAST_YEAR) as i64;
        unix(year, month, day, clock)
    }

    fn separator(&mut self, dashed: bool) -> Option<()> {
        if dashed { self.expect(b'-') } else { self.blank() }
    }

    /// `hh:mm:ss` as seconds since midnight; a leap second counts.
    fn clock(&mut self) -> Option<i64> {
        let hour = self.number()?;
        self.expect(b':')?;
        let minute = self.number()?;
        self.expect(b':')?;
        let second = self.number()?;
        (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
    }

    /// Seconds by which an optional zone is ahead of UTC. Only numeric zones are; names are read as UTC.
    fn zone(&mut self) -> Option<i64> {
        self.blanks();
        let sign = match self.0.first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            Some(byte) if byte.is_ascii_alphabetic() => {
                self.word()?;
                return Some(0);
            }
            _ => return Some(0),
        };
        self.0 = &self.0[1..];
        let digits = self.digits()?;
        if digits.len() != 4 {
            return None;
        }
        let (hours, minutes) = (decimal(&digits[..2]) as i64, decimal(&digits[2..]) as i64);
        (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
    }

    /// A month's name as 1..=12.
    fn month(&mut self) -> Option<i64> {
        const NAMES: &[u8; 36] = b"janfebmaraprmayjunjulaugsepoctnovdec";
        let word = self.word()?;
        let index = NAMES.chunks(3).position(|name| word.eq_ignore_ascii_case(name))?;
        Some(index as i64 + 1)
    }

    fn word(&mut self) -> Option<&'a [u8]> {
        self.take_while(u8::is_ascii_alphabetic)
    }

    fn digits(&mut self) -> Option<&'a [u8]> {
        self.take_while(u8::is_ascii_digit)
    }

    /// A number of one or two digits.
    fn number(&mut self) -> Option<i64> {
        let digits = self.digits()?;
        (digits.len() <= 2).then(|| decimal(digits) as i64)
    }

    /// One or more of what `class` accepts.
    fn take_while(&mut self, class: impl Fn(&u8) -> bool) -> Option<&'a [u8]> {
        let length = self.0.iter().take_while(|byte| class(byte)).count();
        let (head, tail) = self.0.split_at(length);
        self.0 = tail;
        (length > 0).then_some(head)
    }

    fn byte(&mut self, byte: u8) -> bool {
        let found = self.0.first() == Some(&byte);
        self.0 = &self.0[usize::from(found)..];
        found
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.byte(byte).then_some(())
    }

    /// One or more blanks.
    fn blank(&mut self) -> Option<()> {
        self.take_while(|byte| matches!(byte, b' ' | b'\t')).map(drop)
    }

    /// Any number of blanks.
    fn blanks(&mut self) {
        self.blank();
    }

    fn end(&self) -> bool {
        self.0.is_empty()
    }
}

/// Saturates.
fn decimal(digits: &[u8]) -> u64 {
    let push = |sum: u64, digit: &u8| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    digits.iter().fold(0, push)
}

/// The year that ends in `digits` and is less than 50 years before `reference`, or at most 50 after (RFC 9110 §5.6.7).
fn nearest_century(digits: i64, reference: i64) -> i64 {
    const YEAR: i64 = 31_556_952;
    let now = 1970 + reference.div_euclid(YEAR).min(LAST_YEAR as i64);
    let oldest = now - 49;
    oldest + (digits - oldest).rem_euclid(100)
}

/// Seconds since 1970 of a day and `clock` seconds, in the proleptic Gregorian calendar.
///
/// Days are counted as in Howard Hinnant's `days_from_civil`: years begin in March, so that the leap day is the last.
fn unix(year: i64, month: i64, day: i64, clock: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT.
    const THEN: u64 = 784_111_777;

    fn secs(value: &str) -> Option<u64> {
        parse(value, None, THEN).map(|span| {
            assert_eq!(span.as_nanos() % 1_000_000_000, 0);
            span.as_nanos() / 1_000_000_000
        })
    }

    #[test]
    fn reads_numbers_as_seconds() {
        assert_eq!(secs("0"), Some(0));
        assert_eq!(secs(" 37\t"), Some(37));
        assert_eq!(secs("3600"), Some(3600));
        assert_eq!(parse("1.5", None, 0), Some(Span::from_millis(1500)));
        assert_eq!(parse("0.0000000001", None, 0), Some(Span::from_nanos(1)));
        assert_eq!(secs("1000000000000"), Some(MAX_SECS));
        assert_eq!(secs(&"9".repeat(128)), Some(MAX_SECS));
    }

    #[test]
    fn refuses_what_is_not_a_wait() {
        let long = "9".repeat(129);
        for value in [
            "", " ", "-1", "+1", "NaN", "inf", "1e309", "1e3", ".5", "1.", "1.5.2", "0x10", "3s", "\u{663}", "3\u{a0}", "soon",
            "3,", ",3", "3 4", &long,
        ] {
            assert_eq!(secs(value), None, "{value:?}");
        }
    }

    #[test]
    fn reads_all_three_forms_of_a_date() {
        for value in [
            "Sun, 06 Nov 1994 08:50:37 GMT",
            "Sunday, 06-Nov-94 08:50:37 GMT",
            "Sun Nov  6 08:50:37 1994",
            "Sun, 06 Nov 1994 08:50:37 -0000",
            "Sun, 06 Nov 1994 08:50:37",
            "Sun, 06 Nov 1994 08:50:37 CET",
            "Sun, 06 Nov 1994 09:50:37 +0100",
            "sun, 6 nov 1994 08:50:37 gmt",
        ] {
            assert_eq!(secs(value), Some(60), "{value:?}");
        }
    }

    #[test]
    fn a_date_counts_from_the_date_of_the_response() {
        let value = "Sun, 06 Nov 1994 08:50:37 GMT";
        let from = |date| parse(value, Some(date), 0);
        assert_eq!(from("Sun, 06 Nov 1994 08:50:30 GMT"), Some(Span::from_secs(7)));
        assert_eq!(from("Sunday, 06-Nov-94 08:50:30 GMT"), Some(Span::from_secs(7)));
        assert_eq!(parse(value, Some("yesterday"), THEN), Some(Span::from_secs(60)));
    }

    #[test]
    fn a_year_of_two_digits_is_the_nearest_one() {
        let year = |digits, reference: i64| nearest_century(digits, (reference - 1970) * 31_556_952 + 1000);
        assert_eq!(year(0, 1999), 2000);
        assert_eq!(year(94, 1994), 1994);
        assert_eq!(year(95, 2026), 1995);
        assert_eq!(year(76, 2026), 2076);
        assert_eq!(year(77, 2026), 1977);
    }

    #[test]
    fn a_date_is_clamped_at_both_ends() {
        assert_eq!(secs("Sun, 06 Nov 1994 08:49:36 GMT"), Some(0));
        assert_eq!(secs("Thu, 01 Jan 0000 00:00:00 GMT"), Some(0));
        assert_eq!(secs("Fri, 31 Dec 9999999999 23:59:59 GMT"), Some(MAX_SECS));
        assert_eq!(secs("Sat, 05 Nov 2044 00:00:00 GMT"), Some(MAX_SECS));
    }

    #[test]
    fn refuses_days_and_times_that_do_not_exist() {
        for value in [
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 29 Feb 1995 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:60:00 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06-Nov 94 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 +01",
            "Sun, 06 Nov 1994 08:49:37 GMT x",
            "Sun Nov  6 08:49:37",
        ] {
            assert_eq!(secs(value), None, "{value:?}");
        }
        assert_eq!(secs("Tue, 29 Feb 2000 08:49:60 GMT"), Some(MAX_SECS));
    }

    #[test]
    fn of_several_copies_the_longest_counts() {
        assert_eq!(secs("3, 120"), Some(120));
        assert_eq!(secs("120,3"), Some(120));
        let dates = "Sun, 06 Nov 1994 08:49:40 GMT, Sun, 06 Nov 1994 08:50:37 GMT";
        assert_eq!(secs(dates), Some(60));
        assert_eq!(secs("3, soon"), None);
    }
}
