-- Rows are only ever added. The one writer enforces uniqueness, so nothing here needs an index, a key or a sequence.
create table if not exists meta (name varchar, value varchar);
create table if not exists prompts (
    prompt_id varchar, text varchar, reference varchar, verifier varchar, metadata varchar, added_at timestamp
);
create table if not exists prompt_sets (prompt_set varchar, prompt_id varchar);
create table if not exists policy_versions (
    policy varchar, version integer, checkpoint varchar, step bigint, live_at timestamp
);
create table if not exists runs (run varchar, config varchar, created_at timestamp);
create table if not exists jobs (job varchar, kind varchar, run varchar, request varchar, created_at timestamp);
create table if not exists job_events (job varchar, seq integer, state varchar, data varchar, told_at timestamp);
create table if not exists visits (
    seq bigint, run varchar, prompt_id varchar, visit integer, epoch integer, step integer, round integer,
    job varchar, action varchar, keep_probability double, reason varchar, decided_at timestamp
);
alter table visits add column if not exists rollouts integer;
create table if not exists groups (
    seq bigint, group_id varchar, run varchar, prompt_id varchar, visit integer, job varchar,
    policy varchar, policy_version integer, temperature double, kind varchar, rewards double[],
    rollouts integer, tokens bigint, outcomes map(varchar, integer), truncated integer,
    sampling_seconds double, verifying_seconds double, stored_at timestamp
);
create table if not exists rollouts (
    group_id varchar, idx integer, text varchar, token_ids integer[], logprobs float[], tokens integer,
    finish_reason varchar, weight_versions struct(version integer, "start" integer, "end" integer)[],
    outcome varchar, reward double, verifier varchar, elapsed double, detail varchar, recorded_reward double
);
create table if not exists failures (
    run varchar, prompt_id varchar, visit integer, job varchar, stage varchar, detail varchar, failed_at timestamp
);
create table if not exists datasets (
    name varchar, version integer, dataset_id varchar, recipe varchar, watermark bigint, manifest varchar,
    frozen_at timestamp
);
create table if not exists dataset_deletions (name varchar, version integer, reason varchar, deleted_at timestamp);
create table if not exists rescores (
    seq bigint, group_id varchar, run varchar, job varchar, kind varchar, rewards double[], outcomes map(varchar, integer),
    verdicts struct(outcome varchar, reward double, verifier varchar, elapsed double, detail varchar)[],
    stored_at timestamp
);
