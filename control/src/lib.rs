//! Fairway's control process: it reads the cluster's objects and the kernel's state, works out what the
//! shared tables should hold, and keeps them so. No packet passes through it.
//!
//! [`manifests`] and [`kernel`] are sources; [`index`] is the pure heart; [`publisher`] writes the tables; [`api`]
//! answers on a Unix socket; [`app`] ties them together. docs/control.md is the operator's page.

pub mod api;
pub mod app;
pub mod convert;
pub mod core;
pub mod encapsulation;
pub mod enis;
pub mod fallback;
pub mod health;
pub mod index;
pub mod kernel;
pub mod manifests;
pub mod masquerade;
pub mod model;
pub mod names;
pub mod object;
pub mod pools;
pub mod publisher;
pub mod room;
pub mod selection;
pub mod services;
