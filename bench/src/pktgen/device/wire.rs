//! No device at all: the sink takes the packets at the other end of the generator's own veth. What this gives is
//! what generator and sink can do, and what they cost; a device's own cost is the difference.

use super::ground::Ground;
use super::{Device, DeviceError};
use crate::pktgen::paths::Site;
use crate::pktgen::scenario::Scenario;
use crate::pktgen::trial::Ends;

/// A wire.
pub struct WireDevice {
    ground: Ground,
}

impl WireDevice {
    /// Opens generator and sink.
    ///
    /// # Errors
    /// If namespaces or sockets cannot be had.
    pub fn start(scenario: &Scenario) -> Result<WireDevice, DeviceError> {
        let mut ground = Ground::new(scenario)?;
        ground.open_short_circuit()?;
        Ok(WireDevice { ground })
    }
}

impl Device for WireDevice {
    fn name(&self) -> &'static str {
        "wire"
    }

    fn site(&self) -> Site {
        self.ground.site()
    }

    fn ends(&mut self) -> &mut Ends {
        self.ground.ends()
    }

    fn has_core(&self) -> bool {
        false
    }

    fn hint(&mut self) -> String {
        self.ground.what_ends_saw()
    }

    fn finish(self: Box<Self>) -> Result<Vec<String>, DeviceError> {
        self.ground.close_checked("wire")
    }
}
