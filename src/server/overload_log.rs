//! Logs that new clients must wait in the listen backlog: once when it begins, and once when it is
//! over, however often it comes and goes in between.

use std::fmt;
use std::mem;
use std::time::{Duration, Instant};

use log::{info, warn};

/// For how long no client must have waited until the server counts as recovered.
const RECOVERY_PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct OverloadLog {
    is_overloaded: bool,
    recovers_at: Option<Instant>,
}

impl OverloadLog {
    /// New clients must wait.
    pub(crate) fn begin(&mut self, message: fmt::Arguments<'_>) {
        self.recovers_at = None;
        if !mem::replace(&mut self.is_overloaded, true) {
            warn!("{message}");
        }
    }

    /// The listen backlog is empty. Returns when to call this again, if ever.
    pub(crate) fn backlog_is_empty(&mut self) -> Option<Instant> {
        if !self.is_overloaded {
            return None;
        }
        let now = Instant::now();
        let recovers_at = *self.recovers_at.get_or_insert(now + RECOVERY_PERIOD);
        if now < recovers_at {
            return Some(recovers_at);
        }
        info!("accepting new clients again");
        *self = Self::default();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_ends_once_the_backlog_was_empty_for_a_while() {
        let mut overload = OverloadLog::default();
        assert_eq!(overload.backlog_is_empty(), None, "there is no overload");
        overload.begin(format_args!("a test"));
        let begin = Instant::now();
        let recovers_at = overload.backlog_is_empty().expect("the overload goes on");
        assert!(recovers_at >= begin + RECOVERY_PERIOD);
        assert_eq!(
            overload.backlog_is_empty(),
            Some(recovers_at),
            "the time does not move"
        );
        overload.begin(format_args!("again"));
        assert!(
            overload.backlog_is_empty() > Some(recovers_at),
            "the period begins anew"
        );
        overload.recovers_at = Some(begin);
        assert_eq!(overload.backlog_is_empty(), None);
        assert!(!overload.is_overloaded);
    }
}
