//! What every daemon tells of its process and its runtime, under the names that Prometheus' own clients use.

use std::fmt;

use tokio::runtime::{Handle, RuntimeMetrics};

use super::Sheet;

/// Looks it up. The runtime is the present one.
pub(super) fn collector() -> impl Fn(&mut Sheet<'_>) -> fmt::Result + Send + Sync + 'static {
    let runtime = Handle::try_current().ok().map(|handle| handle.metrics());
    move |sheet| {
        sheet.info("drizzle_build", "Which version runs", ("version", env!("CARGO_PKG_VERSION")))?;
        #[cfg(target_os = "linux")]
        if let Some(process) = linux::Process::read() {
            sheet.counter("process_cpu_seconds", "Processor time, of user and system", process.cpu_seconds)?;
            sheet.gauge("process_resident_memory_bytes", "Resident memory", process.resident)?;
            sheet.gauge("process_open_fds", "Open file descriptors", process.open_files)?;
            sheet.gauge("process_start_time_seconds", "When it started, since 1970", process.started)?;
        }
        runtime.as_ref().map_or(Ok(()), |runtime| tasks(sheet, runtime))
    }
}

fn tasks(sheet: &mut Sheet<'_>, runtime: &RuntimeMetrics) -> fmt::Result {
    let workers = 0..runtime.num_workers();
    let busy: f64 = workers.clone().map(|worker| runtime.worker_total_busy_duration(worker).as_secs_f64()).sum();
    let parks: u64 = workers.map(|worker| runtime.worker_park_count(worker)).sum();
    sheet.gauge("tokio_workers", "Threads of the runtime", runtime.num_workers() as u64)?;
    sheet.gauge("tokio_tasks", "Tasks that are not over", runtime.num_alive_tasks() as u64)?;
    sheet.gauge("tokio_global_queue", "Tasks that wait for any thread", runtime.global_queue_depth() as u64)?;
    sheet.counter("tokio_busy_seconds", "Time that threads polled tasks, of all of them together", busy)?;
    sheet.counter("tokio_parks", "How often a thread of the runtime found nothing to do", parks)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{fs, sync::LazyLock, time::UNIX_EPOCH};

    use rustix::param::{clock_ticks_per_second, page_size};

    pub(super) struct Process {
        pub(super) cpu_seconds: f64,
        pub(super) resident: u64,
        pub(super) open_files: u64,
        pub(super) started: f64,
    }

    /// When the machine was started; the kernel counts from then.
    static BOOTED: LazyLock<f64> = LazyLock::new(|| {
        let now = UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64());
        let uptime = fs::read_to_string("/proc/uptime").ok();
        now - uptime.and_then(|text| text.split(' ').next()?.parse::<f64>().ok()).unwrap_or_default()
    });

    impl Process {
        /// By proc(5).
        pub(super) fn read() -> Option<Self> {
            let stat = fs::read_to_string("/proc/self/stat").ok()?;
            // The name of the program, in parentheses, may have anything in it.
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let ticks =
                |field: usize| Some(fields.get(field - 3)?.parse::<f64>().ok()? / clock_ticks_per_second() as f64);
            let pages = fs::read_to_string("/proc/self/statm").ok()?;
            let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
            Some(Self {
                cpu_seconds: ticks(14)? + ticks(15)?,
                resident: pages * page_size() as u64,
                open_files: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
                started: *BOOTED + ticks(22)?,
            })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn this_process_is_read() {
            let process = Process::read().unwrap();
            assert!(process.resident > 1 << 20 && process.open_files > 2);
            let age = UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - process.started;
            assert!((-1.0..3600.0).contains(&age) && process.cpu_seconds <= 3600.0, "{age}");
        }
    }
}
