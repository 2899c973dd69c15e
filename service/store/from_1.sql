-- Schema 1 had one set of tables, no sealed segments, and fewer columns. The new tables are there already, and empty.
insert into hot.prompts by name from prompts;
insert into hot.prompt_sets by name from prompt_sets;
insert into hot.policy_versions by name from policy_versions;
insert into hot.runs by name from runs;
insert into hot.jobs by name from jobs;
insert into hot.job_events by name from job_events;
insert into hot.visits by name from visits;
insert into hot.groups by name
select g.*, coalesce(r.has_text, false) as has_text
from groups g left join (select group_id, bool_and(text is not null) as has_text from rollouts group by 1) r using (group_id);
insert into hot.rollouts by name
select g.seq, g.run, g.prompt_id, g.policy, g.policy_version, r.*,
       length(r.text) as characters, strlen(r.text) as bytes, md5_number_lower(r.text) as text_hash,
       if(r.tokens > 0 and len(r.logprobs) = r.tokens, list_sum(r.logprobs::double[]), null) as logprob
from rollouts r join groups g using (group_id);
insert into hot.failures by name from failures;
insert into hot.datasets by name from datasets;
insert into hot.dataset_deletions by name from dataset_deletions;
insert into hot.rescores by name from rescores;
drop view if exists informativeness;
drop macro table if exists informativeness_of;
drop view if exists group_facts;
drop view if exists judged_rollouts;
drop view if exists judged_groups;
drop view if exists dataset_versions;
drop table if exists prompts;
drop table if exists prompt_sets;
drop table if exists policy_versions;
drop table if exists runs;
drop table if exists jobs;
drop table if exists job_events;
drop table if exists visits;
drop table if exists groups;
drop table if exists rollouts;
drop table if exists failures;
drop table if exists datasets;
drop table if exists dataset_deletions;
drop table if exists rescores;
