//! `metadata.creationTimestamp` as Kubernetes reads it: Go's `time.Parse` with the layout of RFC 3339.

use jiff::Timestamp;

/// Not a time that Kubernetes takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoTime;

/// Reads a creation time. Go's zero time, the start of the year 1, is the same as none; what lies beyond the last instant
/// that can be told apart here (some hours before the end of the year 9999) is that instant.
///
/// # Errors
/// The text is not exactly of the form `2024-01-01T00:00:00Z` (fraction and offset allowed), or not a time.
pub fn creation_time(text: &str) -> Result<Option<Timestamp>, NoTime> {
    let (date, rest) = text.split_at_checked(19).ok_or(NoTime)?;
    let form = |text: &str, form: &str| {
        text.len() == form.len()
            && text.bytes().zip(form.bytes()).all(|(byte, wanted)| match wanted {
                b'0' => byte.is_ascii_digit(),
                _ => byte == wanted,
            })
    };
    let zone = match rest.strip_prefix('.') {
        None => rest,
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if zone.len() == fraction.len() {
                return Err(NoTime);
            }
            zone
        }
    };
    let known = form(date, "0000-00-00T00:00:00")
        && (zone == "Z" || form(zone, "+00:00") || form(zone, "-00:00"))
        // Leap seconds are none to Go.
        && !date.ends_with("60");
    if !known {
        return Err(NoTime);
    }
    match text.parse::<Timestamp>() {
        Ok(instant) if instant.as_second() == GO_ZERO && instant.subsec_nanosecond() == 0 => Ok(None),
        Ok(instant) => Ok(Some(instant)),
        Err(_) if date.starts_with("9999-12-3") && date.parse::<jiff::civil::DateTime>().is_ok() => {
            Ok(Some(Timestamp::MAX))
        }
        Err(_) => Err(NoTime),
    }
}

/// `0001-01-01T00:00:00Z`, in seconds since 1970.
const GO_ZERO: i64 = -62_135_596_800;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_instants() {
        let time = |text: &str| creation_time(text).expect("a time").expect("not zero");
        assert_eq!(time("2024-01-01T02:00:00+02:00"), time("2024-01-01T00:00:00Z"));
        assert_eq!(time("2023-12-31T23:30:00-00:30"), time("2024-01-01T00:00:00.000Z"));
        assert!(time("2024-01-01T00:00:00.000000001Z") > time("2024-01-01T00:00:00Z"));
        assert!(time("9999-12-31T23:59:59Z") > time("9999-12-01T00:00:00Z"));
        assert!(time("0001-01-01T00:00:01Z") < time("1970-01-01T00:00:00Z"));
    }

    #[test]
    fn the_zero_time_of_go_is_none() {
        for zero in ["0001-01-01T00:00:00Z", "0001-01-01T01:00:00+01:00", "0001-01-01T00:00:00.0Z"] {
            assert_eq!(creation_time(zero), Ok(None), "{zero}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "",
            "2024-01-01",
            "2024-01-01T00:00:00",
            "2024-01-01 00:00:00Z",
            "2024-01-01t00:00:00z",
            "2024-01-01T00:00:00z",
            "2024-01-01T00:00Z",
            "2024-1-1T00:00:00Z",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+0200",
            "2024-01-01T00:00:00+02",
            "2024-01-01T00:00:00Z ",
            "2024-01-01T00:00:00Z[UTC]",
            "2024-13-01T00:00:00Z",
            "2024-02-30T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2016-12-31T23:59:60Z",
            "9999-12-32T00:00:00Z",
            "+02024-01-01T00:00:00Z",
            "２０24-01-01T00:00:00Z",
        ] {
            assert_eq!(creation_time(text), Err(NoTime), "{text}");
        }
    }
}
