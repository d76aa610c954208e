-- A school for the push: as many students as psql's variable :students says,
-- each with a contact that the table contacts has, 20 lessons, points, a streak
-- and 5 units of a level. bench_progress says, in SQL that anybody can read,
-- what each contact has to have afterwards; docs/progress.md defines it.

CREATE TABLE users (id integer PRIMARY KEY, email text, course_id text);
CREATE TABLE course_lessons (course_id text, lesson_id text);
CREATE TABLE course_progress (user_id integer, lesson_id text, completed boolean, score numeric,
    time_spent integer, last_accessed_at timestamptz, PRIMARY KEY (user_id, lesson_id));
CREATE TABLE user_streaks (user_id integer PRIMARY KEY, current_streak integer);
CREATE TABLE user_xp (user_id integer PRIMARY KEY, total_xp integer);
CREATE TABLE a1_progress (user_id integer, unit_id text, status text, accuracy_percentage numeric,
    time_spent_minutes integer, completed_at timestamptz, last_activity timestamptz, PRIMARY KEY (user_id, unit_id));
CREATE TABLE a1_milestones (user_id integer, unit_id text);
CREATE INDEX ON a1_milestones (user_id);

INSERT INTO users
    SELECT row_number() OVER (ORDER BY hubspot_contact_id COLLATE "C"), email, 'spanish'
    FROM (SELECT hubspot_contact_id, email FROM contacts WHERE email LIKE '%@%'
          ORDER BY hubspot_contact_id COLLATE "C" LIMIT :students) c;
INSERT INTO course_lessons SELECT 'spanish', 'lesson-' || n FROM generate_series(1, 25) n;
INSERT INTO course_progress
    SELECT u.id, 'lesson-' || n, n <= u.id % 21, 60 + (u.id * 7 + n * 5) % 40, 60 * n,
        timestamptz '2026-01-01 08:00Z' + make_interval(hours => u.id % 5000 + n)
    FROM users u, generate_series(1, 20) n;
INSERT INTO user_streaks SELECT id, id % 50 FROM users;
INSERT INTO user_xp SELECT id, 10 * (id % 900) FROM users;
INSERT INTO a1_progress
    SELECT u.id, 'unit-' || n, CASE WHEN n <= u.id % 6 THEN 'completed' ELSE 'in_progress' END,
        70 + (u.id + n) % 30, 15, NULL, timestamptz '2026-02-01 08:00Z' + make_interval(hours => u.id % 3000 + n)
    FROM users u, generate_series(1, 5) n;
INSERT INTO a1_milestones SELECT id, 'unit-1' FROM users WHERE id % 3 = 0;
ANALYZE users, course_lessons, course_progress, user_streaks, user_xp, a1_progress, a1_milestones;

-- One aggregate over everything: what floor and do-it-yourself push, and what
-- all rows are compared with.
CREATE VIEW bench_progress AS
WITH lessons AS (
    SELECT user_id,
        count(*) FILTER (WHERE completed) AS completed,
        round(avg(score) FILTER (WHERE completed), 2) AS score,
        sum(time_spent) / 60 AS minutes,
        max(last_accessed_at) AS latest,
        (array_agg(lesson_id ORDER BY last_accessed_at DESC))[1] AS current,
        coalesce(string_agg(to_json(lesson_id)::text, ',' ORDER BY last_accessed_at) FILTER (WHERE completed), '') AS list
    FROM course_progress GROUP BY user_id
), units AS (
    SELECT user_id, count(*) FILTER (WHERE status = 'completed') AS completed,
        round(avg(accuracy_percentage), 2) AS accuracy, sum(time_spent_minutes) AS minutes,
        max(last_activity) AS latest
    FROM a1_progress GROUP BY user_id
), milestones AS (
    SELECT user_id, count(*) AS n FROM a1_milestones GROUP BY user_id
)
SELECT u.id AS user_id, lower(u.email) AS email, jsonb_strip_nulls(jsonb_build_object(
    'lessons_completed', l.completed::text,
    'current_lesson', l.current,
    'average_score', l.score::text,
    'total_study_time', (l.minutes + t.minutes)::text,
    'progress_percentage', round(100.0 * l.completed / c.n, 2)::text,
    'last_activity_date', to_char(l.latest AT TIME ZONE 'UTC', 'YYYY-MM-DD'),
    'study_streak', s.current_streak::text,
    'current_streak', s.current_streak::text,
    'total_xp', x.total_xp::text,
    'completed_lessons_list', '[' || l.list || ']',
    'current_active_level', 'a1',
    'last_activity_date_global',
        to_char(greatest(l.latest, t.latest) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
    'level_a1_units_completed', t.completed::text,
    'level_a1_accuracy', t.accuracy::text,
    'level_a1_milestones', coalesce(m.n, 0)::text,
    'level_a1_status', CASE WHEN t.completed = 5 THEN 'completed' ELSE 'in_progress' END)) AS properties
FROM users u
JOIN lessons l ON l.user_id = u.id
JOIN units t ON t.user_id = u.id
JOIN user_streaks s ON s.user_id = u.id
JOIN user_xp x ON x.user_id = u.id
LEFT JOIN milestones m ON m.user_id = u.id
CROSS JOIN (SELECT count(*) AS n FROM course_lessons) c;
