mod claims;
mod cpus;
mod judge;
mod lookout;
mod machine;
mod track;
