//! Singular and plural in messages.

/// Returns the number with its noun: "1 byte", "2 bytes".
pub(crate) fn plural(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}
