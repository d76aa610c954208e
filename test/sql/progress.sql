-- Students' progress as SQL shows it: what the push would send is computed
-- from whatever tables there are, and configuration that makes no sense is
-- refused. Nothing here calls HubSpot.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/include/setup.sql'
\i :setup
CREATE EXTENSION hubspot_sync;
SET timezone = 'America/Sao_Paulo';

-- Without students there is nothing to compute.
SELECT * FROM preview_student_progress();
\echo :SQLSTATE
SELECT push_student_progress();
\echo :SQLSTATE
CREATE TABLE users (id integer PRIMARY KEY, name text, course_id text);
SELECT * FROM student_progress;
\echo :SQLSTATE

-- Students alone have no values at all.
ALTER TABLE users ADD email text;
INSERT INTO users (id, name, email, course_id) VALUES
	(1, 'Ana', ' Ana@Example.com ', 'spanish'),
	(2, 'Ben', 'ben@example.com', 'spanish'),
	(3, 'Cleo', 'cleo@example.com', NULL),
	(4, 'Dan', NULL, NULL),
	(5, 'Eve', 'eve at example', NULL),
	(6, 'Finn', 'BEN@example.com', NULL);
SELECT user_id, email, hubspot_contact_id, changed, properties, problem FROM preview_student_progress();

-- A course.
CREATE TABLE course_progress (user_id integer, lesson_id text, completed boolean, score numeric,
	time_spent integer, last_accessed_at timestamp);
INSERT INTO course_progress VALUES
	(1, 'l1', true, 80, 600, '2026-03-01 10:00'),
	(1, 'l2', true, 85.25, 119, '2026-03-02 23:30'),
	(1, 'l2', true, NULL, NULL, '2026-02-01 08:00'),
	(1, 'l3', false, 10, NULL, NULL),
	(2, 'l9', false, NULL, 30, '2026-03-02 12:00'),
	(2, 'l10', false, NULL, 29, '2026-03-02 12:00');
CREATE TABLE course_lessons (course_id text, lesson_id text);
INSERT INTO course_lessons VALUES ('spanish', 'l1'), ('spanish', 'l2'), ('spanish', 'l3');
CREATE TABLE user_streaks (user_id integer, current_streak integer, created_at date);
INSERT INTO user_streaks VALUES (1, 9, '2026-01-01'), (1, 3, '2026-02-01');
CREATE TABLE user_xp (user_id integer, total_xp text);
INSERT INTO user_xp VALUES (1, '100'), (1, ' 2.50 '), (1, 'plenty');

-- Levels are found by their tables' names and columns.
CREATE TABLE a1_progress (user_id integer, unit_id integer, status text, accuracy_percentage real,
	time_spent_minutes integer, completed_at timestamptz, last_activity timestamptz);
CREATE TABLE a1_milestones (user_id integer, unit_id integer, milestone_type text, achieved_at timestamptz);
CREATE TABLE "B2_progress" (LIKE a1_progress);
CREATE TABLE other_progress (user_id integer, step integer);
INSERT INTO a1_progress VALUES
	(1, 1, 'Completed', 90, 30, NULL, '2026-03-03 00:15:00.4567+00'),
	(1, 2, 'open', 85.5, 15, '2026-03-01', '2026-03-01'),
	(2, 1, 'open', NULL, NULL, NULL, NULL);
INSERT INTO a1_milestones VALUES (1, 1, 'first', now()), (1, 1, 'second', now());
SELECT user_id, jsonb_pretty(properties) FROM preview_student_progress() WHERE user_id::int <= 3;
\x on
SELECT * FROM student_progress WHERE user_id = '1';
\x off
SELECT * FROM level_progress_summary ORDER BY level;
SELECT user_id, email, last_activity FROM inactive_students(0);

-- One student, by any spelling; several with one address.
SELECT user_id, problem FROM preview_student_progress('ANA@example.com');
SELECT user_id, problem FROM preview_student_progress('Ben@Example.com');

-- Other names, fewer sources, more units.
ALTER TABLE course_progress RENAME score TO points;
ALTER TABLE course_progress RENAME TO grades;
UPDATE progress_sources SET table_name = 'grades', columns = '{"score": "points", "time_spent": null}'
	WHERE source = 'course_progress';
UPDATE progress_sources SET enabled = false WHERE source IN ('user_xp', 'user_streaks');
INSERT INTO progress_sources (source, level, total_units) VALUES ('level', 'a1', 2);
INSERT INTO progress_sources (source, level, enabled) VALUES ('level', 'b2', false);
SELECT user_id, jsonb_pretty(properties) FROM preview_student_progress('ana@example.com');
SELECT source, level, shipped, configured_by = current_user AS mine FROM progress_sources WHERE NOT shipped ORDER BY 1, 2;

-- Two tables for one level.
CREATE TABLE "A1_progress" (LIKE a1_progress);
SELECT count(*) FROM student_progress;
\echo :SQLSTATE
DROP TABLE "A1_progress";

-- What makes no sense.
\set VERBOSITY terse
UPDATE progress_sources SET columns = '{"points": "score"}' WHERE source = 'course_progress';
\echo :SQLSTATE
UPDATE progress_sources SET columns = '{"score": 1}' WHERE source = 'course_progress';
\echo :SQLSTATE
UPDATE progress_sources SET columns = '{"score": null, "user_id": null}' WHERE source = 'course_progress';
\echo :SQLSTATE
UPDATE progress_sources SET enabled = false WHERE source = 'users';
\echo :SQLSTATE
DELETE FROM progress_sources WHERE source = 'user_xp';
\echo :SQLSTATE
INSERT INTO progress_sources (source, level) VALUES ('level', 'A 1');
\echo :SQLSTATE
INSERT INTO progress_sources (source, level, total_units) VALUES ('milestones', 'a1', 3);
\echo :SQLSTATE
TRUNCATE progress_sources;
\echo :SQLSTATE
UPDATE sync_types SET target_table = 'grades' WHERE sync_type = 'progress';
\echo :SQLSTATE
SELECT trigger_hubspot_sync('progress', 'sideways');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('progress', 'auto', 'today');
\echo :SQLSTATE
SELECT * FROM map_hubspot_sync('progress', 'users', '{id}');
\echo :SQLSTATE

-- Somebody else's tables are neither sources nor anybody's to configure.
CREATE ROLE regress_hubspot_teacher;
GRANT SELECT, INSERT, UPDATE, DELETE ON progress_sources TO regress_hubspot_teacher;
ALTER TABLE grades OWNER TO regress_hubspot_teacher;
SELECT properties ? 'lessons_completed' AS foreign_source FROM preview_student_progress('ana@example.com');
SET ROLE regress_hubspot_teacher;
UPDATE progress_sources SET table_schema = 'public', table_name = 'users' WHERE source = 'course_progress';
\echo :SQLSTATE
UPDATE progress_sources SET table_name = 'grades' WHERE source = 'users';
\echo :SQLSTATE
SELECT * FROM student_progress;
\echo :SQLSTATE
RESET ROLE;
GRANT SELECT ON student_progress TO regress_hubspot_teacher;
GRANT EXECUTE ON FUNCTION read_student_progress() TO regress_hubspot_teacher;
SET ROLE regress_hubspot_teacher;
SELECT * FROM student_progress;
\echo :SQLSTATE
RESET ROLE;
DROP TABLE users, grades, course_lessons, user_streaks, user_xp, a1_progress, a1_milestones, "B2_progress", other_progress;
DROP EXTENSION hubspot_sync;
DROP ROLE regress_hubspot_teacher;
