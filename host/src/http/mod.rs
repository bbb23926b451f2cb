//! The HTTP front: connections, routes and forms of answers. It parses and answers; `node` decides.
//!
//! `connection` speaks HTTP/1.1 and HTTP/2, `route` is the table of paths, `v1` and `admin` are our own contract,
//! `compat` the routes of the systems that Quipu replaces. No store is named here.

pub mod admin;
pub mod body;
pub mod compat;
pub mod connection;
pub mod openapi;
pub mod ops;
pub mod problem;
pub mod request;
pub mod route;
pub mod v1;

/// What all connections share.
pub struct Http {
    pub router: route::Router,
    /// None: the operators' routes answer on loopback only.
    pub admin_token: Option<String>,
    /// Where clients reach this node.
    pub advertise: String,
}
