//! How much memory the process has, and may have, as Linux tells.

use std::fs;

/// Bytes that are in memory, files that it has mapped included.
pub fn resident() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS")
}

/// Bytes in memory that are the process's own: what no file holds.
pub fn private() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon")
}

/// Bytes that it may have: the container's limit, or what the machine has.
pub fn limit() -> Option<u64> {
    // Of cgroups of version 2 and of version 1, as a container sees them.
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = files.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    let machine = field(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal");
    limits.chain(machine).min()
}

/// A line such as `VmRSS:     1234 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_names() {
        let text = "Name:\tx\nVmRSSx:\t1 kB\nVmRSS:\t   2048 kB\nThreads:\t3\n";
        assert_eq!(field(text, "VmRSS"), Some(2 << 20));
        assert_eq!([field(text, "Threads"), field(text, "RssAnon"), field(text, "Name")], [None; 3]);
    }

    #[test]
    fn what_the_process_takes_is_counted() {
        let all = limit().unwrap();
        // Other tests of this process give memory back meanwhile.
        let counted = (0..20).any(|_| {
            let before = private().unwrap();
            let block = vec![1u8; 256 << 20];
            let after = private().unwrap();
            drop(std::hint::black_box(block));
            after >= before + (200 << 20) && after < all
        });
        assert!(counted && resident().unwrap() < all);
    }
}
