-- What users ask: one view for each noun, over the schema `store` and nothing else. Names, columns and meanings stay the
-- same when the tables change; docs/sql.md says what each column means, and a test holds it to that.
create view prompts as
select prompt_id, text, reference, verifier, metadata::json as metadata, added_at,
       coalesce(s.prompt_sets, []) as prompt_sets
from store.prompts left join (
    select prompt_id, list(distinct prompt_set order by prompt_set) as prompt_sets from store.prompt_sets group by 1
) s using (prompt_id);
create view runs as
select run, config->>'$.policy' as policy, config->>'$.prompt_set' as prompt_set,
       (config->>'$.sampling.n')::integer as n, (config->>'$.sampling.temperature')::double as temperature,
       config->>'$.selector.kind' as selector, config->>'$.retain' as retain, (config->>'$.seed')::bigint as seed,
       config::json as config, created_at
from store.runs;
create view policy_versions as
select policy, version, checkpoint, step, live_at from store.policy_versions;
create view visits as
select seq, run, prompt_id, visit, epoch, step, round, job, action, keep_probability, reason, rollouts, decided_at
from store.visits;
create view groups as
select seq, group_id, run, prompt_id, visit, job, policy, policy_version, temperature, kind,
       kind = 'informative' as informative, rewards, len(rewards) as scored, list_avg(rewards) as pass_rate,
       list_var_pop(rewards) as reward_variance, rollouts, tokens, outcomes, truncated, sampling_seconds,
       verifying_seconds, has_text, verdicts is not null as rescored, stored_at
from store.judged_groups;
create view rollouts as
select seq, group_id, idx, group_id || '.' || idx as rollout_id, run, prompt_id, policy, policy_version, outcome, reward, verifier, detail, elapsed,
       recorded_reward, tokens, characters, bytes, text_hash, logprob, finish_reason, finish_reason = 'length' as truncated,
       weight_versions, text, token_ids, logprobs
from store.rollouts_now;
create view verdicts as
select r.group_id, r.idx, r.run, r.prompt_id, r.outcome, r.reward, r.verifier, r.detail, r.elapsed, null as job,
       g.stored_at as judged_at, n.newest is null as counts
from store.rollouts r join store.groups g using (seq)
left join (select group_id, max(seq) as newest from store.rescores group by 1) n on n.group_id = r.group_id
union all by name
select s.group_id, u.idx - 1 as idx, s.run, g.prompt_id, u.verdict.outcome, u.verdict.reward, u.verdict.verifier,
       u.verdict.detail, u.verdict.elapsed, s.job, s.stored_at as judged_at, s.seq = n.newest as counts
from store.rescores s join store.groups g using (group_id)
join (select group_id, max(seq) as newest from store.rescores group by 1) n on n.group_id = s.group_id,
lateral (select unnest(s.verdicts) as verdict, generate_subscripts(s.verdicts, 1) as idx) u;
create view leases as
select lease, run, consumer, state, len(group_ids) as groups, group_ids, watermark, leased_at, told_at
from store.current_leases;
create view datasets as
select name, version, dataset_id, coalesce(recipe->>'$.shape', 'pairs') as shape, from_json(recipe->'$.runs', '["varchar"]') as runs,
       coalesce(list_sum(list_transform(
           list_filter(json_keys(manifest->'$.files'), f -> regexp_full_match(f, 'train(-\d{5}-of-\d{5})?\.parquet')),
           f -> (manifest->'$.files'->f->>'$.rows')::bigint)), 0)::bigint as train_rows, coalesce(list_sum(list_transform(
           list_filter(json_keys(manifest->'$.files'), f -> regexp_full_match(f, 'test(-\d{5}-of-\d{5})?\.parquet')),
           f -> (manifest->'$.files'->f->>'$.rows')::bigint)), 0)::bigint as test_rows,
       recipe::json as recipe, watermark, manifest::json as manifest, frozen_at, deleted_at, deletion_reason
from store.dataset_versions;
create view informativeness as
select * from store.informativeness;
create view prompt_history as
select v.run, v.prompt_id, v.visit, v.epoch, v.step, v.action, v.keep_probability, v.reason, v.decided_at,
       g.group_id, g.policy_version, g.kind, g.rewards, g.pass_rate, g.tokens
from store.visits v left join (
    select *, list_avg(rewards) as pass_rate from store.judged_groups
) g using (run, prompt_id, visit);
