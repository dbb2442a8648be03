//! The agent itself, for Linux guests alone: what it serves, and what it does as init.

mod children;
mod dhcp;
mod exec;
mod facts;
mod init;
mod link;
mod log;
mod modules;
mod netlink;
mod network;
mod online;
mod operations;
mod port;
mod power;
mod root;
mod serve;
mod session;
mod transfer;
mod unmount;
mod users;
mod vsock;

pub use serve::main;
