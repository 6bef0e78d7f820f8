//! The integration tests: one binary, one module per failure mode.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails, and unwrap says where")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::ignored_unit_patterns,
    clippy::semicolon_if_nothing_returned,
    reason = "small numbers that are printed, and brevity"
)]

mod admission;
mod backend;
mod bare;
mod close_report;
mod closing;
mod commit_truth;
mod compile_fail;
mod config;
mod contract;
mod crash;
mod deadlines;
mod documents;
mod domain_bad_input;
mod domain_bulk;
mod domain_files;
mod domain_jobs;
mod domain_model;
mod domain_owner;
mod domain_plans;
mod domain_progress;
mod domain_python;
mod domain_queue;
mod domain_races;
mod domain_rls;
mod domain_round_trips;
mod domain_support;
mod domain_users;
mod failover;
mod first_flight;
mod hammer;
mod hygiene;
mod idempotency;
mod keeping;
mod layers;
mod listen;
mod looking_in;
mod migration_lint;
mod migrations;
mod migrations_back;
mod nested;
mod opening;
mod outage;
mod places;
mod pool_support;
mod proxy;
mod queue_kills;
mod retries;
mod round_trips;
mod saturation;
mod scopes;
mod server;
mod silence;
mod silent_network;
mod sql_text;
mod support;
mod sweep;
mod tls;
