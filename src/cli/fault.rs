//! The values of `--fault`.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::{parse_duration, parse_size, unit_hint};
use crate::server::Faults;

const FORMS: &str = "latency=100ms, slice=3, limit=1KiB, reset=1KiB, stall=1KiB or corrupt=1KiB";

/// One value of `--fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Echoes later.
    Latency(Duration),
    /// Writes at most this many bytes at a time.
    Slice(NonZeroUsize),
    /// Closes after this many bytes.
    Limit(u64),
    /// Resets after this many bytes.
    Reset(u64),
    /// Echoes nothing after this many bytes.
    Stall(u64),
    /// Flips a bit of the byte at this offset.
    Corrupt(u64),
}

/// Parses one value of `--fault`.
pub(super) fn parse_fault(value: &str) -> Result<Fault, String> {
    let Some((kind, value)) = value.trim().split_once('=') else {
        return Err(format!("KIND=VALUE is needed: {FORMS}"));
    };
    let bytes = |value| match parse_size(value) {
        Some(bytes) => Ok(bytes),
        None => Err(format!(
            "{kind} needs a number of bytes, or one with KiB or MiB, such as {kind}=1KiB"
        )),
    };
    match kind {
        "latency" => parse_latency(value),
        "slice" => match usize::try_from(bytes(value)?).map(NonZeroUsize::new) {
            Ok(Some(bytes)) => Ok(Fault::Slice(bytes)),
            _ => Err("slice needs at least 1 byte, such as slice=3".to_owned()),
        },
        "limit" => Ok(Fault::Limit(bytes(value)?)),
        "reset" => Ok(Fault::Reset(bytes(value)?)),
        "stall" => Ok(Fault::Stall(bytes(value)?)),
        "corrupt" => Ok(Fault::Corrupt(bytes(value)?)),
        _ => Err(format!("there is no such fault; the kinds are {FORMS}")),
    }
}

fn parse_latency(value: &str) -> Result<Fault, String> {
    if let Ok(latency) = parse_duration(value) {
        return Ok(Fault::Latency(latency));
    }
    let hint = unit_hint(value, "ms");
    Err(format!(
        "latency needs a number with a unit (us, ms, s, m, h), such as latency=100ms{hint}"
    ))
}

/// Combines the values of `--fault`.
///
/// # Errors
/// Returns an error message if a kind is given twice.
pub(super) fn combine_faults(list: &[Fault]) -> Result<Faults, String> {
    let mut faults = Faults::default();
    for fault in list {
        let is_first = match *fault {
            Fault::Latency(latency) => faults.latency.replace(latency).is_none(),
            Fault::Slice(bytes) => faults.slice.replace(bytes).is_none(),
            Fault::Limit(bytes) => faults.limit.replace(bytes).is_none(),
            Fault::Reset(bytes) => faults.reset.replace(bytes).is_none(),
            Fault::Stall(bytes) => faults.stall.replace(bytes).is_none(),
            Fault::Corrupt(bytes) => faults.corrupt.replace(bytes).is_none(),
        };
        if !is_first {
            return Err(
                "--fault (or ECHO_SERVER_FAULT) has a kind twice; give each kind once, such as \
                 latency=100ms,limit=1KiB"
                    .to_owned(),
            );
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_value() {
        let list = [
            "latency=1s 500ms",
            "slice=3",
            "limit=0",
            "reset=2KiB",
            "stall=7",
            "corrupt=1MiB",
        ];
        let list: Result<Vec<_>, _> = list.into_iter().map(parse_fault).collect();
        let faults = combine_faults(&list.expect("all are valid"));
        let expected = Faults {
            latency: Some(Duration::from_millis(1500)),
            slice: NonZeroUsize::new(3),
            limit: Some(0),
            reset: Some(2048),
            stall: Some(7),
            corrupt: Some(1_048_576),
        };
        assert_eq!(faults, Ok(expected));
        let text = "latency=1.5s,slice=3,limit=0,reset=2048,stall=7,corrupt=1048576";
        assert_eq!(expected.to_string(), text);
    }

    #[test]
    fn errors_name_the_right_form() {
        for (value, form) in [
            ("", "latency=100ms, slice=3"),
            ("limit", "limit=1KiB"),
            ("delay=1s", "no such fault; the kinds are latency=100ms"),
            ("latency=100", "did you mean 100ms?"),
            ("latency=", "such as latency=100ms"),
            ("slice=0", "such as slice=3"),
            ("slice=-1", "such as slice=1KiB"),
            ("limit=", "such as limit=1KiB"),
            ("reset=1s", "such as reset=1KiB"),
        ] {
            let error = parse_fault(value).expect_err(value);
            assert!(error.contains(form), "{value}: {error}");
        }
    }

    #[test]
    fn a_kind_twice_is_an_error() {
        for [first, second] in [
            [Fault::Limit(1), Fault::Limit(1)],
            [Fault::Stall(1), Fault::Stall(2)],
        ] {
            assert!(combine_faults(&[first, Fault::Corrupt(1), second]).is_err());
        }
    }
}
