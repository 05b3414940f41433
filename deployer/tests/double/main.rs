//! `sky-deploy` and a cloud that keeps its promises, and breaks them when it is told to: the real program
//! against a double of the five OpenStack services, with real agents in its servers.

#![expect(clippy::unwrap_used, reason = "tests panic")]

mod battery;
mod cinder;
mod cloud;
mod deploy;
mod failures;
mod faults;
mod glance;
mod guests;
mod http;
mod keystone;
mod lifecycle;
mod naming;
#[path = "../../../agent/tests/support/need.rs"]
mod need;
mod neutron;
mod nova;
#[path = "../battery/parts.rs"]
mod parts;
mod rendering;
mod sweep;
