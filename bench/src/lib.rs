//! Machine-readable figures and benchmark drivers.
