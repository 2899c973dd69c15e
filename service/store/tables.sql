-- The tables of one generation. Rows are only ever added, and the one writer enforces uniqueness, so nothing here needs
-- an index, a key or a sequence. Rows that belong together share the number of their group. A table that is there stays.
create schema if not exists hot;
create table if not exists hot.prompts (
    prompt_id varchar, text varchar, reference varchar, verifier varchar, metadata varchar, added_at timestamp
);
create table if not exists hot.prompt_sets (prompt_set varchar, prompt_id varchar);
create table if not exists hot.policy_versions (policy varchar, version integer, checkpoint varchar, step bigint, live_at timestamp);
create table if not exists hot.runs (run varchar, config varchar, created_at timestamp);
create table if not exists hot.jobs (job varchar, kind varchar, run varchar, request varchar, created_at timestamp);
create table if not exists hot.job_events (job varchar, seq integer, state varchar, data varchar, told_at timestamp);
create table if not exists hot.visits (
    seq bigint, run varchar, prompt_id varchar, visit integer, epoch integer, step integer, round integer,
    job varchar, action varchar, keep_probability double, reason varchar, decided_at timestamp, rollouts integer
);
create table if not exists hot.groups (
    seq bigint, group_id varchar, run varchar, prompt_id varchar, visit integer, job varchar,
    policy varchar, policy_version integer, temperature double, kind varchar, rewards double[],
    rollouts integer, tokens bigint, outcomes map(varchar, integer), truncated integer,
    sampling_seconds double, verifying_seconds double, stored_at timestamp, has_text boolean
);
-- What most questions need of a group stands in its rollouts as well: it takes no space, and they need no join.
create table if not exists hot.rollouts (
    seq bigint, run varchar, prompt_id varchar, policy varchar, policy_version integer, group_id varchar, idx integer,
    tokens integer, characters integer, bytes integer, text_hash ubigint, logprob double, finish_reason varchar,
    outcome varchar, reward double, verifier varchar, elapsed double, detail varchar, recorded_reward double,
    weight_versions struct(version integer, "start" integer, "end" integer)[],
    text varchar, token_ids integer[], logprobs float[]
);
create table if not exists hot.failures (
    run varchar, prompt_id varchar, visit integer, job varchar, stage varchar, detail varchar, failed_at timestamp
);
create table if not exists hot.datasets (
    name varchar, version integer, dataset_id varchar, recipe varchar, watermark bigint, manifest varchar,
    frozen_at timestamp
);
create table if not exists hot.dataset_deletions (name varchar, version integer, reason varchar, deleted_at timestamp);
create table if not exists hot.rescores (
    seq bigint, group_id varchar, run varchar, job varchar, kind varchar, rewards double[], outcomes map(varchar, integer),
    verdicts struct(outcome varchar, reward double, verifier varchar, elapsed double, detail varchar)[],
    stored_at timestamp
);
create table if not exists hot.leases (
    seq bigint, lease varchar, run varchar, consumer varchar, request varchar, group_ids varchar[], watermark bigint,
    leased_at timestamp
);
create table if not exists hot.lease_events (
    lease varchar, seq integer, state varchar, seconds double, told_at timestamp
);
create table if not exists hot.answers (answer varchar, request varchar, status integer, body varchar, told_at timestamp);
