mod claims;
mod cpus;
mod judge;
mod machine;
mod track;
