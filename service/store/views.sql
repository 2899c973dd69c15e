-- Over the tables of all generations and segments. Made anew whenever those change and when the store is opened.
create or replace view dataset_versions as
select d.*, x.reason as deletion_reason, x.deleted_at
from datasets d left join dataset_deletions x using (name, version);
-- Leases with what was told of each of them last.
create or replace view current_leases as
select l.*, e.newest.seq as events, e.newest.state as state, e.newest.seconds as seconds, e.newest.told_at as told_at
from leases l join (
    select lease, arg_max({seq: seq, state: state, seconds: seconds, told_at: told_at}, seq) as newest
    from lease_events group by lease
) e using (lease);
-- Groups as they are judged now: by their newest rescore, else as they were when sampled.
create or replace view judged_groups as
select g.* exclude (kind, rewards, outcomes),
       coalesce(r.newest.kind, g.kind) as kind, coalesce(r.newest.rewards, g.rewards) as rewards,
       coalesce(r.newest.outcomes, g.outcomes) as outcomes, r.newest.verdicts as verdicts
from groups g left join (
    select group_id,
           arg_max({kind: kind, rewards: rewards, outcomes: outcomes, verdicts: verdicts}, seq) as newest
    from rescores group by group_id
) r using (group_id);
-- Members of groups with the verdict that counts now.
create or replace view judged_rollouts as
select r.* exclude (outcome, reward, verifier, elapsed, detail),
       unnest(case when g.verdicts is null
                   then {outcome: r.outcome, reward: r.reward, verifier: r.verifier, elapsed: r.elapsed, detail: r.detail}
                   else g.verdicts[r.idx + 1] end)
from rollouts r join judged_groups g using (seq);
-- What a group says about how much its prompt can teach. Entropies are in nats, lengths in tokens.
create or replace view group_facts as
select g.group_id, g.run, g.prompt_id, g.visit, g.policy, g.policy_version, g.kind, g.temperature, g.rollouts, g.truncated,
       g.tokens, g.sampling_seconds, g.verifying_seconds, len(g.rewards) as scored,
       list_avg(g.rewards) as mean_reward, list_var_pop(g.rewards) as reward_variance,
       list_max(g.rewards) - list_min(g.rewards) as margin,
       case when len(g.rewards) = 0 then null when list_avg(g.rewards) in (0, 1) then 0
            else - list_avg(g.rewards) * ln(list_avg(g.rewards)) - (1 - list_avg(g.rewards)) * ln(1 - list_avg(g.rewards))
       end as outcome_entropy,
       last_value(nullif(g.kind, 'unscored') ignore nulls) over (
           partition by g.run, g.prompt_id order by g.visit rows between unbounded preceding and 1 preceding
       ) as kind_before,
       m.* exclude (group_id)
from judged_groups g left join (
    select group_id, count(text_hash) as texts, count(distinct text_hash) as different_texts,
           count(detail) filter (where reward is not null and detail != '') as answers,
           count(distinct detail) filter (where reward is not null and detail != '') as different_answers,
           count(nullif(tokens, 0)) filter (where reward >= 1) as right_with_tokens,
           sum(tokens) filter (where reward >= 1) as tokens_right,
           count(nullif(tokens, 0)) filter (where reward <= 0) as wrong_with_tokens,
           sum(tokens) filter (where reward <= 0) as tokens_wrong,
           - sum(logprob) as surprise, sum(tokens) filter (where logprob is not null) as tokens_with_logprobs
    from judged_rollouts group by group_id
) m using (group_id);
-- The same of many groups: of some, or with null of all. One row for each policy version of a run, one for each run (no
-- version) and one for everything (no run).
create or replace macro informativeness_of(group_ids) as table
select run, policy_version, count(*) as groups,
       count(*) filter (where kind = 'informative') as informative,
       count(*) filter (where kind = 'easy') as easy, count(*) filter (where kind = 'hard') as hard,
       count(*) filter (where kind = 'unscored') as unscored,
       avg(mean_reward) as mean_reward, avg(reward_variance) as reward_variance, avg(outcome_entropy) as outcome_entropy,
       avg(outcome_entropy) filter (where kind = 'informative') as outcome_entropy_of_pairs,
       avg((mean_reward between 0.2 and 0.8)::int) as goldilocks_share,
       list_transform(range(10), b -> len(list_filter(list(least(floor(mean_reward * 10), 9)), x -> x = b)))
           as pass_rate_histogram,
       list_transform(range(10), b -> len(list_filter(
           coalesce(list(least(floor(margin * 10), 9)) filter (where kind = 'informative'), []), x -> x = b)))
           as margin_histogram,
       avg((kind in ('easy', 'hard'))::int) filter (where kind_before in ('easy', 'hard') and kind != 'unscored')
           as wasted_again,
       avg((kind in ('easy', 'hard'))::int) filter (where kind_before = 'informative' and kind != 'unscored')
           as wasted_after_informative,
       sum(different_answers) / nullif(sum(answers), 0) as unique_answer_share,
       1 - sum(different_texts) / nullif(sum(texts), 0) as duplicate_completion_share,
       sum(tokens_right) / nullif(sum(right_with_tokens), 0) as tokens_right,
       sum(tokens_wrong) / nullif(sum(wrong_with_tokens), 0) as tokens_wrong,
       sum(surprise) / nullif(sum(tokens_with_logprobs), 0) as token_entropy,
       sum(truncated) / nullif(sum(rollouts), 0) as truncated_share,
       sum(tokens)::bigint as tokens, sum(sampling_seconds) as sampling_seconds,
       sum(verifying_seconds) as verifying_seconds,
       nullif(sum(tokens), 0) / nullif(count(*) filter (where kind = 'informative'), 0)
           as tokens_per_informative_group
from group_facts where group_ids is null or list_contains(group_ids, group_id)
group by grouping sets ((run, policy_version), (run), ());
create or replace view informativeness as
select * from informativeness_of(null) where policy_version is not null;
