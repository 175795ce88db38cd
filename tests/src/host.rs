//! Machines of their own for a test: network namespaces, each with its own interfaces, routes and `/etc/hosts`.
//!
//! Everything is made by the test and removed when the value is dropped. Needs root and Linux's `ip`; without them
//! the test says that it was skipped.

use std::{
    ffi::OsString,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Running, cluster::ready_line, process::Process, skipped};

/// A network namespace.
#[derive(Debug)]
pub struct Host {
    name: String,
}

/// What a link does, in the words of `tc`.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// Bits a second, such as `1mbit`.
    pub rate: &'a str,
    /// Bytes that pass at once, such as `4kb`.
    pub burst: &'a str,
    /// How much waits before it, as time, such as `400ms`; the rest is lost.
    pub queue: &'a str,
}

impl<'a> Shape<'a> {
    /// A slow line with a long queue before it, as consumers have.
    pub fn slow(rate: &'a str) -> Self {
        Self { rate, burst: "4kb", queue: "400ms" }
    }

    /// A line with a short queue before it, as in a data centre.
    pub fn fast(rate: &'a str) -> Self {
        Self { rate, burst: "80kb", queue: "50ms" }
    }
}

impl Host {
    /// A host with only a loopback interface. `hosts` are the lines of its `/etc/hosts`. `None` if this process may
    /// not make namespaces; the test that wants one then has nothing to test.
    ///
    /// # Panics
    /// If `ip` made the namespace and then fails.
    pub fn new(hosts: &[&str]) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dz{}-{count}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).output();
        match made {
            Ok(made) if made.status.success() => {}
            Ok(made) => {
                skipped(format_args!("ip netns says {}", String::from_utf8_lossy(&made.stderr).trim()));
                return None;
            }
            Err(error) => {
                skipped(format_args!("there is no ip: {error}"));
                return None;
            }
        }
        let host = Self { name };
        fs::create_dir_all(host.etc()).expect("a folder below /etc/netns can be made");
        fs::write(host.etc().join("hosts"), hosts.join("\n") + "\n").expect("its hosts file can be written");
        host.ip("link set lo up");
        Some(host)
    }

    /// `ip netns exec` puts what lies here over `/etc`.
    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }

    /// Runs `ip ARGS` in it.
    ///
    /// # Panics
    /// If that fails.
    pub fn ip(&self, args: &str) {
        let output = Command::new("ip").args(["-n", &self.name]).args(args.split(' ')).output().expect("ip starts");
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Changes a kernel setting in it, such as `net.ipv6.bindv6only=1`.
    ///
    /// # Panics
    /// If that fails.
    pub fn sysctl(&self, setting: &str) {
        self.run(&["sysctl", "-qw", setting]);
    }

    /// Lets so much through what leaves by this interface. `false`, once said why, if this kernel cannot.
    ///
    /// # Panics
    /// If there is no `ip`.
    #[must_use]
    pub fn shape(&self, interface: &str, Shape { rate, burst, queue }: Shape<'_>) -> bool {
        let shape = ["qdisc", "add", "dev", interface, "root", "tbf", "rate", rate, "burst", burst, "latency", queue];
        worked(Command::new("ip").args(["netns", "exec", &self.name, "tc"]).args(shape), "tc says")
    }

    /// Lets TCP connections to a network, such as `10.9.0.0/24`, be governed in this way, such as `bbr`. `false`, once said,
    /// if this kernel cannot. By the route, because the setting of a namespace has only what the whole machine allows.
    ///
    /// # Panics
    /// If there is no `ip`.
    #[must_use]
    pub fn congestion_control(&self, network: &str, interface: &str, name: &str) -> bool {
        let route = ["route", "replace", network, "dev", interface, "congctl", name];
        worked(Command::new("ip").args(["-n", &self.name]).args(route), &format!("this kernel has no {name}:"))
    }

    /// Does something on a thread in it: the sockets made there are this host's.
    ///
    /// # Panics
    /// If this process may not, or if `action` does.
    pub fn within<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(Path::new("/run/netns").join(&self.name)).expect("ip made it");
        let inside = || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).expect("a thread may enter what its process made");
            action()
        };
        thread::scope(|scope| scope.spawn(inside).join().expect("it does not panic"))
    }

    /// Its name among the namespaces of this machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of an interface on its wire.
    ///
    /// # Panics
    /// If there is no such interface.
    pub fn hardware_address(&self, interface: &str) -> [u8; 6] {
        let text = self.run(&["cat", &format!("/sys/class/net/{interface}/address")]);
        let bytes: Vec<u8> = text.trim().split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        bytes.try_into().expect("six bytes")
    }

    /// Bytes that went out by this interface, with all headers.
    ///
    /// # Panics
    /// If there is no such interface.
    pub fn sent(&self, interface: &str) -> u64 {
        self.counted(interface, "tx_bytes")
    }

    /// Bytes that came in by this interface, without the headers of Ethernet, IPv4 and TCP.
    ///
    /// # Panics
    /// If there is no such interface.
    pub fn came_in(&self, interface: &str) -> u64 {
        /// With TCP's timestamps.
        const HEADERS: u64 = 14 + 20 + 32;
        let packets = self.counted(interface, "rx_packets");
        self.counted(interface, "rx_bytes").saturating_sub(packets * HEADERS)
    }

    fn counted(&self, interface: &str, what: &str) -> u64 {
        let text = self.run(&["cat", &format!("/sys/class/net/{interface}/statistics/{what}")]);
        text.trim().parse().expect("a number")
    }

    /// Runs a command in it; its output.
    fn run(&self, command: &[&str]) -> String {
        let output = Command::new("ip").args(["netns", "exec", &self.name]).args(command).output();
        let output = output.expect("ip starts");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A bridge, and hosts that hang on it: each has one interface, `eth0`, with its address.
    pub fn network(addresses: &[&str], hosts: &[&str]) -> Option<(Self, Vec<Self>)> {
        let switch = Self::new(&[])?;
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        let mut members = Vec::new();
        for (n, address) in addresses.iter().enumerate() {
            let host = Self::new(hosts)?;
            switch.ip(&format!("link add port{n} type veth peer name eth0 netns {}", host.name));
            switch.ip(&format!("link set port{n} master br0 up"));
            host.ip(&format!("addr add {address} dev eth0 nodad"));
            host.ip("link set eth0 up");
            members.push(host);
        }
        Some((switch, members))
    }

    /// A network of so many hosts, `10.9.0.1` and on.
    pub fn numbered(count: usize) -> Option<(Self, Vec<Self>)> {
        let addresses: Vec<String> = (1..=count).map(|n| format!("10.9.0.{n}/24")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        Self::network(&addresses, &["127.0.0.1 localhost"])
    }

    fn inside(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// Starts a program in it.
    pub fn start(&self, program: &str, args: &[&str], logs: &Path) -> Process {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        Process::start_by(&self.inside(), program, program, &args, logs)
    }

    /// Starts a daemon in it and waits until it serves; the process and its ready line.
    pub async fn daemon(&self, program: &str, args: &[&str], logs: &Path) -> (Process, String) {
        let mut process = self.start(program, args, logs);
        let line = ready_line(&mut process, program).await;
        (process, line)
    }

    /// Starts `peer-cli` in it, against the daemon at the default place.
    pub fn cli(&self, args: &[&str], logs: &Path) -> Running {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        Running::start_by(&self.inside(), "127.0.0.1:7402", &args, logs)
    }
}

/// Whether a command that a kernel may not know worked; if not, says what it said.
fn worked(command: &mut Command, otherwise: &str) -> bool {
    let output = command.output().expect("ip starts");
    if !output.status.success() {
        skipped(format_args!("{otherwise} {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    output.status.success()
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = fs::remove_dir_all(self.etc());
    }
}
