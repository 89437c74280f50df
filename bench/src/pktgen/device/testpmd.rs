//! DPDK's testpmd over its af_xdp driver, io mode: it hands each packet from the client's veth to the server's
//! without looking at it. Not a peer in function, but the floor: what AF_XDP itself costs in another engine's hands.
//!
//! Addresses stay as they are, so only path `same-node` arrives where it should; the sink does not mind.

use super::ground::Ground;
use super::{Device, DeviceError};
use crate::pktgen::cores::cores;
use crate::pktgen::paths::Site;
use crate::pktgen::scenario::Scenario;
use crate::pktgen::trial::Ends;
use fairway_tests::process::{Process, wait_for};
use std::path::Path;
use std::time::Duration;

const PROGRAM: &str = "/usr/bin/dpdk-testpmd";
const READY: Duration = Duration::from_secs(30);

/// testpmd on a testbed.
pub struct TestpmdDevice {
    // Before the ground, so that it is stopped first.
    testpmd: Process,
    ground: Ground,
}

impl TestpmdDevice {
    /// Starts it on the device's core, its idle main thread on the generator's.
    ///
    /// # Errors
    /// If it is not installed or does not start.
    pub fn start(scenario: &Scenario) -> Result<TestpmdDevice, DeviceError> {
        if !Path::new(PROGRAM).exists() {
            let (device, program) = ("testpmd", "dpdk-testpmd");
            let package = "dpdk-dev librte-net-af-xdp23 librte-mempool-ring23 librte-bus-vdev23";
            return Err(DeviceError::MissingProgram { device, program, package });
        }
        let (Some(main), Some(core)) = cores() else {
            return Err(DeviceError::Unfit {
                device: "testpmd",
                why: "it needs to know the machine's cores",
            });
        };
        if main == core {
            return Err(DeviceError::Unfit { device: "testpmd", why: "it needs two cores" });
        }
        if scenario.senders > 1 {
            return Err(DeviceError::Unfit {
                device: "testpmd",
                why: "it joins two ports; set senders to 1",
            });
        }
        let mut ground = Ground::new(scenario)?;
        let prefix = ground.testbed().name().to_owned();
        let mut command = ground.node().command(PROGRAM);
        command
            .args(["-l", &format!("{},{}", main.id, core.id), "--main-lcore", &main.id.to_string()])
            .args(["--no-huge", "-m", "256", "--no-pci", "--no-telemetry", "--file-prefix", &prefix])
            .arg(format!("--vdev=net_af_xdp0,iface={}", ground.client_veth()))
            .arg(format!("--vdev=net_af_xdp1,iface={}", ground.server_veth()))
            // Without a terminal it ends at once unless it is asked for statistics.
            .args([
                "--",
                "--forward-mode=io",
                "--auto-start",
                "--stats-period=60",
                "--total-num-mbufs=16384",
            ]);
        let log = ground.testbed().dir().join("testpmd.log");
        let mut testpmd = Process::spawn("testpmd", command, &log, true)?;
        wait_for("testpmd forwards", READY, || {
            testpmd.expect_alive()?;
            let log = testpmd.log();
            Ok(if log.contains("forwards packets on") { Ok(()) } else { Err("not yet".to_owned()) })
        })?;
        ground.open_ends()?;
        Ok(TestpmdDevice { testpmd, ground })
    }
}

impl Device for TestpmdDevice {
    fn name(&self) -> &'static str {
        "testpmd"
    }

    fn site(&self) -> Site {
        self.ground.site()
    }

    fn ends(&mut self) -> &mut Ends {
        self.ground.ends()
    }

    fn hint(&mut self) -> String {
        format!("{}; testpmd says: {}", self.ground.what_ends_saw(), self.testpmd.log_tail(10))
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<String>, DeviceError> {
        // How it ends is its own affair.
        self.testpmd.stop();
        self.ground.close_checked("testpmd")
    }
}
