//! The limits of Linux, from `/proc`, the control groups and `getrlimit(2)`.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use rlimit::Resource;

use super::{Capacity, MMAP_THRESHOLD, connection_size};

/// Returns what each limited resource allows.
pub(super) fn capacities(buffer_size: usize) -> Vec<Capacity> {
    [memory_maps(buffer_size), threads(), memory(buffer_size)]
        .into_iter()
        .flatten()
        .collect()
}

/// Returns how many connections the kernel's limit on memory maps allows.
fn memory_maps(buffer_size: usize) -> Option<Capacity> {
    /// The stack, the alternate signal stack, and a guard page for each.
    const MAPS_PER_THREAD: usize = 4;
    /// For the memory of `malloc`, and for threads that have ended but still hold their stack.
    const RESERVE: usize = 2000;
    let limit: usize = read_number("/proc/sys/vm/max_map_count")?;
    let in_use = fs::read_to_string("/proc/self/maps").ok()?.lines().count();
    let maps_for_buffer = usize::from(buffer_size >= MMAP_THRESHOLD);
    let available = limit.saturating_sub(in_use + RESERVE);
    Some(Capacity {
        connections: available / (MAPS_PER_THREAD + maps_for_buffer),
        reason: format!("only {limit} memory maps are allowed (raise vm.max_map_count)"),
    })
}

/// Returns how many connections the limits on threads of this user, cgroup and host allow.
fn threads() -> Option<Capacity> {
    /// Threads that do not serve a client, here and in other processes.
    const RESERVE: usize = 50;
    let per_user = match Resource::NPROC.get() {
        Ok((limit, _)) if !is_root_of_the_host() => usize::try_from(limit).ok(),
        _ => None,
    };
    let limits = [
        (per_user, "ulimit -u"),
        (pids_max(), "pids.max of the cgroup, TasksMax= in systemd"),
        (
            read_number("/proc/sys/kernel/threads-max"),
            "kernel.threads-max",
        ),
        (read_number("/proc/sys/kernel/pid_max"), "kernel.pid_max"),
    ];
    let (limit, setting) = limits
        .into_iter()
        .filter_map(|(limit, setting)| Some((limit?, setting)))
        .min_by_key(|(limit, _)| *limit)?;
    Some(Capacity {
        connections: limit.saturating_sub(RESERVE),
        reason: format!("only {limit} threads are allowed (raise {setting})"),
    })
}

/// Returns how many connections the limits on this process's memory allow.
fn memory(buffer_size: usize) -> Option<Capacity> {
    let (limit, in_use, setting) = memory_limits().min_by_key(available)?;
    let left = usize::try_from(available(&(limit, in_use, setting))).ok()?;
    let mebibytes = limit / 1_048_576;
    Some(Capacity {
        connections: left / connection_size(buffer_size),
        reason: format!("memory is limited to {mebibytes} MiB (raise {setting})"),
    })
}

/// Returns how much memory is left below the lowest limit, in bytes, if there is a limit.
pub(super) fn available_memory() -> Option<u64> {
    memory_limits().map(|limit| available(&limit)).min()
}

fn available((limit, in_use, _): &(u64, u64, &str)) -> u64 {
    limit.saturating_sub(*in_use)
}

/// Returns the limits on memory, the memory in use and the setting to raise.
fn memory_limits() -> impl Iterator<Item = (u64, u64, &'static str)> {
    let resource = |resource: Resource, field: &str, setting| {
        let (limit, _) = resource.get().ok()?;
        if limit == rlimit::INFINITY {
            return None;
        }
        Some((
            limit,
            status_field::<u64>(field)?.saturating_mul(1024),
            setting,
        ))
    };
    let address_space = resource(Resource::AS, "VmSize:", "ulimit -v");
    let data = resource(Resource::DATA, "VmData:", "ulimit -d");
    [address_space, data].into_iter().flatten()
}

/// Returns the lowest limit on threads in this process's control groups.
fn pids_max() -> Option<usize> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut lowest = None;
    for line in cgroups.lines() {
        // Version 2 has the line `0::PATH`, version 1 `N:pids:PATH`.
        let mut fields = line.splitn(3, ':').skip(1);
        let (controller, path) = (fields.next()?, fields.next()?);
        let root = match controller {
            "" => "/sys/fs/cgroup",
            "pids" => "/sys/fs/cgroup/pids",
            _ => continue,
        };
        let group = Path::new(root).join(path.trim_start_matches('/'));
        for ancestor in group
            .ancestors()
            .take_while(|ancestor| ancestor.starts_with(root))
        {
            if let Some(limit) = read_number::<usize>(ancestor.join("pids.max")) {
                lowest = Some(lowest.map_or(limit, |lowest: usize| lowest.min(limit)));
            }
        }
    }
    lowest
}

/// Returns whether this process belongs to root, outside a user namespace: the kernel does not apply
/// the limit on threads to it. Root of a rootless container is another user of the host.
fn is_root_of_the_host() -> bool {
    let all_users_of_the_host = ["0", "0", "4294967295"];
    status_field::<u32>("Uid:") == Some(0)
        && fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().eq(all_users_of_the_host))
}

/// Returns the first word after `name` in `/proc/self/status`.
fn status_field<T: FromStr>(name: &str) -> Option<T> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Reads a file that holds one number. Returns `None` for anything else, such as `max`.
fn read_number<T: FromStr>(path: impl AsRef<Path>) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
