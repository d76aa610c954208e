/*-------------------------------------------------------------------------
 *
 * progress.c
 *	  Students' progress, computed from the school's tables.
 *
 * One SQL statement computes everything about a slice of students, in the
 * order of their ids.  A slice is read in whatever transaction the caller has;
 * nothing is held between two of them.  The statement is put together from
 * what sources.c has found; all names in it are qualified and quoted, and it
 * runs with the current user's rights and row security.
 *
 * A value is a property's text, or there is none.  The definitions of all
 * values stand in docs/progress.md.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/formatting.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "catalog.h"
#include "json.h"
#include "progress.h"

/* HubSpot's longest text (facts section 6). */
#define MAX_TEXT 65536

/* Longest e-mail address that is tried. */
#define MAX_ADDRESS 254

/* How many students with the same address a message names. */
#define SHOWN_SHARERS "5"

/* An id as text that compares by its bytes. */
#define AS_TEXT "%s::text COLLATE \"C\""

/* A number in text, short enough to be cast without an error. */
#define NUMBER_PATTERN \
	"E'^[ \\\\t\\\\n\\\\r\\\\f\\\\v]*[-+]?" \
	"([0-9]{1,40}[.]?[0-9]{0,40}|[.][0-9]{1,40})([eE][-+]?[0-9])?" \
	"[ \\\\t\\\\n\\\\r\\\\f\\\\v]*$'"

const char *const hs_level_statuses[] = {
	"not_started", "in_progress", "completed"
};
const int	hs_level_nstatuses = lengthof(hs_level_statuses);

/* Columns of the statement before the values. */
#define ID_COLUMN 1
#define EMAIL_COLUMN 2
#define ADDRESS_COLUMN 3
#define ACTIVE_COLUMN 4
#define FIRST_VALUE 5

/* Which ids a statement is about. */
typedef struct Bounds
{
	bool		begins;			/* above $1 */
	bool		ends;			/* up to $2, or $1 without a beginning */
} Bounds;

/* A statement on its way. */
typedef struct Build
{
	HsProgress *progress;
	Bounds		bounds;
	StringInfoData sql;
} Build;

/* ------------------------------------------------------------------------
 * Values of columns
 * ------------------------------------------------------------------------
 */

static bool
has(const HsSource *source, HsSourceRole role)
{
	return source != NULL && source->columns[role].name != NULL;
}

static const char *
column(const HsSource *source, HsSourceRole role)
{
	return source->columns[role].name;
}

static bool
is_integer(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

/* A column as numeric: no value for what is no finite number. */
static char *
number_of(const HsSource *source, HsSourceRole role)
{
	const char *name = column(source, role);
	Oid			type = source->columns[role].type;

	if (is_integer(type))
		return psprintf("%s::numeric", name);
	if (type == NUMERICOID || type == FLOAT4OID || type == FLOAT8OID)
		return psprintf("CASE WHEN %s > -1e50 AND %s < 1e50"
						" THEN %s::numeric END",
						name, name, name);
	return psprintf("CASE WHEN %s::text ~ " NUMBER_PATTERN
					" THEN %s::text::numeric END",
					name, name);
}

/* A column as timestamptz: no value for what no date can be written of. */
static char *
instant_of(const HsSource *source, HsSourceRole role)
{
	const char *name = column(source, role);
	Oid			type = source->columns[role].type;

	if (type == TIMESTAMPTZOID)
		return psprintf("CASE WHEN %s >= '0001-01-01 00:00:00+00'"
						" AND %s < '9999-12-31 00:00:00+00' THEN %s END",
						name, name, name);
	return psprintf("CASE WHEN %s >= '0001-01-01' AND %s < '9999-12-31'"
					" THEN %s::timestamp AT TIME ZONE 'UTC' END",
					name, name, name);
}

/* A column as boolean, never null. */
static char *
flag_of(const HsSource *source, HsSourceRole role)
{
	const char *name = column(source, role);
	Oid			type = source->columns[role].type;

	if (type == BOOLOID)
		return psprintf("coalesce(%s, false)", name);
	if (is_integer(type) || type == NUMERICOID)
		return psprintf("coalesce(%s <> 0, false)", name);
	return psprintf("coalesce(lower(btrim(%s::text))"
					" IN ('t', 'true', 'y', 'yes', 'on', '1'), false)",
					name);
}

/* Whether a unit of a level is completed, as boolean. */
static char *
unit_done(const HsSource *units)
{
	StringInfoData sql;

	initStringInfo(&sql);
	if (has(units, HS_ROLE_STATUS))
		appendStringInfo(&sql, "coalesce(lower(%s::text) = 'completed', false)",
						 column(units, HS_ROLE_STATUS));
	if (has(units, HS_ROLE_DONE_AT))
		appendStringInfo(&sql, "%s%s IS NOT NULL", sql.len > 0 ? " OR " : "",
						 column(units, HS_ROLE_DONE_AT));
	return sql.len > 0 ? sql.data : NULL;
}

/* Half up to two decimals. */
static char *
two_decimals(const char *number)
{
	return psprintf("round(floor((%s) * 100 + 0.5) / 100, 2)", number);
}

/* An instant as HubSpot writes it, cut to milliseconds (facts section 6). */
static char *
instant_text(const char *instant)
{
	return psprintf("to_char(date_trunc('milliseconds', (%s) AT TIME ZONE 'UTC'),"
					" 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')",
					instant);
}

/* ------------------------------------------------------------------------
 * Which rows
 * ------------------------------------------------------------------------
 */

/* Whether ids of two columns compare as they are. */
static bool
comparable(const HsSourceColumn *a, const HsSourceColumn *b)
{
	bool		a_is_text = a->type == TEXTOID || a->type == VARCHAROID;
	bool		b_is_text = b->type == TEXTOID || b->type == VARCHAROID;

	if (is_integer(a->type) && is_integer(b->type))
		return true;
	return (a->type == b->type || (a_is_text && b_is_text)) &&
		a->collation == b->collation;
}

/* Whether the users of a source compare with the ids of users. */
static bool
has_users_ids(const HsProgress *progress, const HsSource *source)
{
	return comparable(&progress->sources->users->columns[HS_ROLE_USER],
					  &source->columns[HS_ROLE_USER]);
}

/* Appends the limits of a slice to a column of ids. */
static void
append_bounds(Build *build, const char *id)
{
	appendStringInfo(&build->sql, " WHERE %s IS NOT NULL", id);
	if (build->bounds.begins)
		appendStringInfo(&build->sql, " AND %s > $1", id);
	if (build->bounds.ends)
		appendStringInfo(&build->sql, " AND %s <= $%d", id,
						 build->bounds.begins ? 2 : 1);
}

/* Begins the selection of a source's rows of the students in question. */
static void
append_rows(Build *build, const HsSource *source)
{
	const char *user = column(source, HS_ROLE_USER);

	appendStringInfo(&build->sql, " FROM %s AS source", source->table);
	if (build->progress->scope.email == NULL &&
		has_users_ids(build->progress, source))
		append_bounds(build, user);
	else if (has_users_ids(build->progress, source))
		appendStringInfo(&build->sql, " WHERE %s IN (SELECT id FROM u)", user);
	else
		appendStringInfo(&build->sql,
						 " WHERE " AS_TEXT " IN (SELECT " AS_TEXT " FROM u)",
						 user, "id");
}

/* The users of a source in the form in which they are joined, as k. */
static char *
user_key(const HsProgress *progress, const HsSource *source)
{
	return psprintf(has_users_ids(progress, source) ? "%s AS k" : AS_TEXT " AS k",
					column(source, HS_ROLE_USER));
}

/* Appends the end of a subquery that is joined under a name. */
static void
append_join_end(Build *build, const HsSource *source, const char *name)
{
	appendStringInfo(&build->sql,
					 has_users_ids(build->progress, source)
					 ? ") AS %s ON %s.k = %s" : ") AS %s ON %s.k = " AS_TEXT,
					 name, name, "u.id");
}

/* Appends the students. */
static void
append_students(Build *build)
{
	const HsSource *users = build->progress->sources->users;
	const char *email = column(users, HS_ROLE_EMAIL);

	appendStringInfo(&build->sql,
					 "WITH u AS (SELECT %s AS id, %s::text AS email,"
					 " lower(btrim(%s::text)) AS address",
					 column(users, HS_ROLE_USER), email, email);
	if (has(users, HS_ROLE_COURSE))
		appendStringInfo(&build->sql, ", %s AS course",
						 column(users, HS_ROLE_COURSE));
	appendStringInfo(&build->sql, " FROM %s AS source", users->table);
	if (build->progress->scope.email != NULL)
		appendStringInfo(&build->sql,
						 " WHERE lower(btrim(%s::text)) = lower(btrim($1))"
						 " AND %s IS NOT NULL",
						 email,
						 column(users, HS_ROLE_USER));
	else
		append_bounds(build, column(users, HS_ROLE_USER));
	appendStringInfoChar(&build->sql, ')');
}

/* ------------------------------------------------------------------------
 * What is computed of each source
 * ------------------------------------------------------------------------
 */

/*
 * Appends a row for each lesson of a user: whether it was completed, when it
 * was opened last, when last by a row that says completed, scores, seconds.
 */
static void
append_lessons(Build *build, const HsSource *course)
{
	bool		single = course->one_per_item;
	const char *done = has(course, HS_ROLE_DONE)
		? flag_of(course, HS_ROLE_DONE) : "false";
	const char *seen = has(course, HS_ROLE_ACTIVE_AT)
		? instant_of(course, HS_ROLE_ACTIVE_AT) : "NULL::timestamptz";
	const char *score = has(course, HS_ROLE_SCORE)
		? number_of(course, HS_ROLE_SCORE) : "NULL::numeric";
	const char *seconds = has(course, HS_ROLE_TIME)
		? number_of(course, HS_ROLE_TIME) : "NULL::numeric";

	if (single)
		appendStringInfoString(&build->sql,
							   "SELECT k, lesson, done, seen,"
							   " CASE WHEN done THEN seen END AS done_at,"
							   " CASE WHEN done THEN score END AS score,"
							   " CASE WHEN done AND score IS NOT NULL THEN 1 END AS scores,"
							   " seconds FROM (");
	else
		appendStringInfoString(&build->sql,
							   "SELECT k, lesson, bool_or(done) AS done, max(seen) AS seen,"
							   " max(seen) FILTER (WHERE done) AS done_at,"
							   " sum(score) FILTER (WHERE done) AS score,"
							   " count(score) FILTER (WHERE done) AS scores,"
							   " sum(seconds) AS seconds FROM (");
	appendStringInfo(&build->sql,
					 "SELECT %s, " AS_TEXT " AS lesson, %s AS done, %s AS seen,"
					 " %s AS score, %s AS seconds",
					 user_key(build->progress, course),
					 column(course, HS_ROLE_ITEM), done, seen, score, seconds);
	append_rows(build, course);
	appendStringInfoString(&build->sql, ") AS r");
	if (!single)
		appendStringInfoString(&build->sql, " GROUP BY k, lesson");
}

/* Joins course_progress as c. */
static void
append_course(Build *build)
{
	const HsSource *course = build->progress->sources->course;

	if (course == NULL)
		return;
	appendStringInfoString(&build->sql,
						   " LEFT JOIN (SELECT k,"
						   " count(*) FILTER (WHERE done AND lesson IS NOT NULL) AS completed,"
						   " (array_agg(lesson ORDER BY seen DESC NULLS LAST, lesson COLLATE \"C\" DESC)"
						   " FILTER (WHERE lesson IS NOT NULL))[1] AS lesson,"
						   " sum(score) / nullif(sum(scores), 0) AS score,"
						   " sum(seconds) AS seconds, max(seen) AS seen,"
						   " '[' || coalesce(string_agg(to_json(lesson)::text, ','"
						   " ORDER BY done_at NULLS FIRST, lesson COLLATE \"C\")"
						   " FILTER (WHERE done AND lesson IS NOT NULL), '') || ']' AS list"
						   " FROM (");
	append_lessons(build, course);
	appendStringInfoString(&build->sql, ") AS l GROUP BY k");
	append_join_end(build, course, "c");
}

/* Joins user_streaks as s. */
static void
append_streaks(Build *build)
{
	const HsSource *streaks = build->progress->sources->streaks;

	if (streaks == NULL)
		return;
	appendStringInfo(&build->sql,
					 " LEFT JOIN (SELECT %s k, streak FROM (SELECT %s, %s AS streak",
					 streaks->one_per_user ? "" : "DISTINCT ON (k)",
					 user_key(build->progress, streaks),
					 number_of(streaks, HS_ROLE_STREAK));
	for (HsSourceRole role = HS_ROLE_UPDATED_AT; role <= HS_ROLE_CREATED_AT; role++)
		appendStringInfo(&build->sql, ", %s AS at%d",
						 has(streaks, role) ? instant_of(streaks, role)
						 : "NULL::timestamptz",
						 role - HS_ROLE_UPDATED_AT);
	append_rows(build, streaks);
	appendStringInfoString(&build->sql, ") AS r");
	if (!streaks->one_per_user)
		appendStringInfoString(&build->sql,
							   " ORDER BY k, at0 DESC NULLS LAST, at1 DESC NULLS LAST,"
							   " streak DESC NULLS LAST");
	append_join_end(build, streaks, "s");
}

/* Joins user_xp as x. */
static void
append_xp(Build *build)
{
	const HsSource *xp = build->progress->sources->xp;

	if (xp == NULL)
		return;
	appendStringInfo(&build->sql,
					 " LEFT JOIN (SELECT k, sum(xp) AS xp FROM (SELECT %s, %s AS xp",
					 user_key(build->progress, xp), number_of(xp, HS_ROLE_XP));
	append_rows(build, xp);
	appendStringInfoString(&build->sql, ") AS r GROUP BY k");
	append_join_end(build, xp, "x");
}

/* Joins the numbers of courses' lessons as t. */
static void
append_courses(Build *build)
{
	const HsSource *users = build->progress->sources->users;
	const HsSource *lessons = build->progress->sources->lessons;
	bool		alike;

	if (lessons == NULL || !has(users, HS_ROLE_COURSE))
		return;
	alike = comparable(&users->columns[HS_ROLE_COURSE],
					   &lessons->columns[HS_ROLE_COURSE]);
	appendStringInfo(&build->sql,
					 alike
					 ? " LEFT JOIN (SELECT %s AS k, count(DISTINCT " AS_TEXT ") AS n"
					   " FROM %s AS source GROUP BY 1) AS t ON t.k = %s"
					 : " LEFT JOIN (SELECT " AS_TEXT " AS k, count(DISTINCT " AS_TEXT ") AS n"
					   " FROM %s AS source GROUP BY 1) AS t ON t.k = " AS_TEXT,
					 column(lessons, HS_ROLE_COURSE),
					 column(lessons, HS_ROLE_ITEM), lessons->table, "u.course");
}

/* Joins a level's units as l0, l1 and so on, and its milestones as m0, m1. */
static void
append_level(Build *build, const HsLevel *level, int number)
{
	const HsSource *units = level->units;
	const char *done = unit_done(units);

	appendStringInfo(&build->sql,
					 " LEFT JOIN (SELECT k, count(%sunit) FILTER (WHERE done) AS units,"
					 " avg(accuracy) AS accuracy, sum(minutes) AS minutes, max(at) AS at"
					 " FROM (SELECT %s, " AS_TEXT " AS unit, %s AS done, %s AS accuracy,"
					 " %s AS minutes, %s AS at",
					 units->one_per_item ? "" : "DISTINCT ",
					 user_key(build->progress, units),
					 column(units, HS_ROLE_ITEM), done ? done : "false",
					 has(units, HS_ROLE_SCORE) ? number_of(units, HS_ROLE_SCORE)
					 : "NULL::numeric",
					 has(units, HS_ROLE_TIME) ? number_of(units, HS_ROLE_TIME)
					 : "NULL::numeric",
					 has(units, HS_ROLE_ACTIVE_AT)
					 ? instant_of(units, HS_ROLE_ACTIVE_AT) : "NULL::timestamptz");
	append_rows(build, units);
	appendStringInfoString(&build->sql, ") AS r GROUP BY k");
	append_join_end(build, units, psprintf("l%d", number));
	if (level->milestones == NULL)
		return;
	appendStringInfo(&build->sql, " LEFT JOIN (SELECT %s, count(*) AS n",
					 user_key(build->progress, level->milestones));
	append_rows(build, level->milestones);
	appendStringInfoString(&build->sql, " GROUP BY 1");
	append_join_end(build, level->milestones, psprintf("m%d", number));
}

/* ------------------------------------------------------------------------
 * Metrics
 * ------------------------------------------------------------------------
 */

/* Adds a metric unless its property is among those to be left out. */
static HsMetric *
add_metric(HsProgress *progress, List *without, char *name, char *label,
		   HsMetricType type, char *sql)
{
	HsMetric   *metric = palloc0(sizeof(HsMetric));
	ListCell   *lc;

	metric->name = name;
	metric->label = label;
	metric->type = type;
	metric->sql = sql;
	foreach(lc, without)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return metric;
	}
	progress->metrics = lappend(progress->metrics, metric);
	return metric;
}

/* The metrics of course_progress. */
static void
add_course_metrics(HsProgress *p, List *without)
{
	const HsSources *s = p->sources;
	bool		done = has(s->course, HS_ROLE_DONE);
	bool		seen = has(s->course, HS_ROLE_ACTIVE_AT);

	if (done)
		add_metric(p, without, "lessons_completed", "Lessons completed",
				   HS_METRIC_NUMBER, "coalesce(c.completed, 0)::text");
	if (seen)
		add_metric(p, without, "current_lesson", "Current lesson",
				   HS_METRIC_STRING, "c.lesson");
	if (done && has(s->course, HS_ROLE_SCORE))
		add_metric(p, without, "average_score", "Average score",
				   HS_METRIC_NUMBER,
				   psprintf("%s::text", two_decimals("c.score")));
	if (seen)
		add_metric(p, without, "last_activity_date", "Last activity date",
				   HS_METRIC_DATE,
				   "to_char(c.seen AT TIME ZONE 'UTC', 'YYYY-MM-DD')");
	if (done && seen)
		add_metric(p, without, "completed_lessons_list", "Completed lessons",
				   HS_METRIC_TEXT, "c.list");
	if (done && s->lessons != NULL && has(s->users, HS_ROLE_COURSE))
		add_metric(p, without, "progress_percentage", "Progress in per cent",
				   HS_METRIC_NUMBER,
				   psprintf("CASE WHEN t.n > 0 THEN %s::text END",
							two_decimals("least(100.0, 100.0 * coalesce(c.completed, 0) / t.n)")))
			->unset_if_idle = true;
}

/* Time on course and levels, in minutes; NULL if no source tells. */
static char *
study_time(const HsSources *sources)
{
	StringInfoData sum;
	StringInfoData any;
	ListCell   *lc;

	initStringInfo(&sum);
	initStringInfo(&any);
	if (has(sources->course, HS_ROLE_TIME))
	{
		appendStringInfoString(&sum, "floor(coalesce(c.seconds, 0) / 60)");
		appendStringInfoString(&any, "c.seconds");
	}
	foreach(lc, sources->levels)
	{
		int			i = foreach_current_index(lc);

		if (!has(((HsLevel *) lfirst(lc))->units, HS_ROLE_TIME))
			continue;
		appendStringInfo(&sum, "%scoalesce(l%d.minutes, 0)",
						 sum.len > 0 ? " + " : "", i);
		appendStringInfo(&any, "%sl%d.minutes", any.len > 0 ? ", " : "", i);
	}
	if (sum.len == 0)
		return NULL;
	return psprintf("CASE WHEN coalesce(%s) IS NOT NULL"
					" THEN trim_scale(%s)::text END",
					any.data, sum.data);
}

/* The newest activity of the levels, and with `course` of that too. */
static char *
newest_activity(const HsSources *sources, bool course)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	if (course && has(sources->course, HS_ROLE_ACTIVE_AT))
		appendStringInfoString(&sql, "c.seen");
	foreach(lc, sources->levels)
	{
		if (has(((HsLevel *) lfirst(lc))->units, HS_ROLE_ACTIVE_AT))
			appendStringInfo(&sql, "%sl%d.at", sql.len > 0 ? ", " : "",
							 foreach_current_index(lc));
	}
	return sql.len > 0 ? psprintf("greatest(%s)", sql.data) : NULL;
}

/* The level with the newest activity, of several the one named last. */
static char *
active_level(const HsSources *sources)
{
	char	   *newest = newest_activity(sources, false);
	StringInfoData sql;

	if (newest == NULL)
		return NULL;
	initStringInfo(&sql);
	appendStringInfoString(&sql, "CASE");
	for (int i = list_length(sources->levels) - 1; i >= 0; i--)
	{
		HsLevel    *level = list_nth(sources->levels, i);

		if (has(level->units, HS_ROLE_ACTIVE_AT))
			appendStringInfo(&sql, " WHEN l%d.at = %s THEN %s", i, newest,
							 quote_literal_cstr(level->name));
	}
	appendStringInfoString(&sql, " END");
	return sql.data;
}

/* The metrics that belong to no single source. */
static void
add_general_metrics(HsProgress *p, List *without)
{
	const HsSources *s = p->sources;
	char	   *time = study_time(s);
	char	   *level = active_level(s);
	char	   *newest = newest_activity(s, true);

	if (time != NULL)
		add_metric(p, without, "total_study_time", "Total study time (minutes)",
				   HS_METRIC_NUMBER, time);
	if (s->streaks != NULL)
	{
		char	   *streak = "trim_scale(s.streak)::text";

		add_metric(p, without, "study_streak", "Study streak (days)",
				   HS_METRIC_NUMBER, streak);
		add_metric(p, without, "current_streak", "Current streak (days)",
				   HS_METRIC_NUMBER, streak);
	}
	if (s->xp != NULL)
		add_metric(p, without, "total_xp", "Total XP", HS_METRIC_NUMBER,
				   "trim_scale(x.xp)::text");
	if (level != NULL)
		add_metric(p, without, "current_active_level", "Current active level",
				   HS_METRIC_STRING, level);
	if (newest != NULL)
		add_metric(p, without, "last_activity_date_global",
				   "Last activity (course and levels)", HS_METRIC_DATETIME,
				   instant_text(newest));
}

/* One metric of a level. */
static void
add_level_metric(HsProgress *p, List *without, const HsLevel *level,
				 const char *part, const char *label, HsMetricType type,
				 char *sql)
{
	HsMetric   *metric = add_metric(p, without,
									psprintf("level_%s_%s", level->name, part),
									psprintf("Level %s: %s",
											 asc_toupper(level->name, strlen(level->name)),
											 label),
									type, sql);

	metric->level = level->name;
	metric->part = part;
	metric->unset_if_idle = type == HS_METRIC_STATUS;
}

/* The units that a level has: as stated, else those that any student has. */
static int64
count_units(const HsProgress *progress, const HsLevel *level)
{
	const HsSource *users = progress->sources->users;
	const char *unit = column(level->units, HS_ROLE_ITEM);
	const char *match = has_users_ids(progress, level->units)
		? "source.%s = u.%s" : "source." AS_TEXT " = u." AS_TEXT;
	MemoryContext caller = CurrentMemoryContext;
	char	   *sql;
	bool		isnull;

	if (level->total_units > 0)
		return level->total_units;
	sql = psprintf("SELECT count(*) FROM (SELECT DISTINCT " AS_TEXT
				   " FROM %s AS source WHERE %s IS NOT NULL"
				   " AND EXISTS (SELECT FROM %s AS u WHERE %s)) AS n",
				   unit, level->units->table, unit, users->table,
				   psprintf(match, column(level->units, HS_ROLE_USER),
							column(users, HS_ROLE_USER)));
	if (SPI_execute(sql, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not count the units of level %s", level->name);
	MemoryContextSwitchTo(caller);
	return DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, 1, &isnull));
}

/* The metrics of a level. */
static void
add_level_metrics(HsProgress *p, List *without, const HsLevel *level, int i,
				  int64 total)
{
	bool		done = unit_done(level->units) != NULL;

	if (done)
		add_level_metric(p, without, level, "units_completed",
						 "units completed", HS_METRIC_NUMBER,
						 psprintf("coalesce(l%d.units, 0)::text", i));
	if (has(level->units, HS_ROLE_SCORE))
		add_level_metric(p, without, level, "accuracy", "accuracy",
						 HS_METRIC_NUMBER,
						 psprintf("%s::text",
								  two_decimals(psprintf("l%d.accuracy", i))));
	if (level->milestones != NULL)
		add_level_metric(p, without, level, "milestones", "milestones",
						 HS_METRIC_NUMBER,
						 psprintf("coalesce(m%d.n, 0)::text", i));
	if (done)
		add_level_metric(p, without, level, "status", "status",
						 HS_METRIC_STATUS,
						 psprintf("CASE WHEN l%d.k IS NULL THEN 'not_started'"
								  " WHEN l%d.units >= " INT64_FORMAT
								  " THEN 'completed' ELSE 'in_progress' END",
								  i, i, Max(total, 1)));
}

/* Finds out which values there are. */
static void
add_metrics(HsProgress *progress, List *without)
{
	ListCell   *lc;

	add_course_metrics(progress, without);
	add_general_metrics(progress, without);
	foreach(lc, progress->sources->levels)
	{
		const HsLevel *level = lfirst(lc);

		add_level_metrics(progress, without, level, foreach_current_index(lc),
						  count_units(progress, level));
	}
	foreach(lc, progress->metrics)
	{
		const HsMetric *metric = lfirst(lc);

		progress->seed = hash_bytes_extended((const unsigned char *) metric->name,
											 strlen(metric->name),
											 progress->seed);
	}
}

/* ------------------------------------------------------------------------
 * The statement
 * ------------------------------------------------------------------------
 */

/* Appends whether a student has a row anywhere. */
static void
append_active(Build *build)
{
	const HsSources *s = build->progress->sources;
	ListCell   *lc;

	appendStringInfoString(&build->sql, "(false");
	if (s->course != NULL)
		appendStringInfoString(&build->sql, " OR c.k IS NOT NULL");
	if (s->streaks != NULL)
		appendStringInfoString(&build->sql, " OR s.k IS NOT NULL");
	if (s->xp != NULL)
		appendStringInfoString(&build->sql, " OR x.k IS NOT NULL");
	foreach(lc, s->levels)
	{
		int			i = foreach_current_index(lc);

		appendStringInfo(&build->sql, " OR l%d.k IS NOT NULL", i);
		if (((HsLevel *) lfirst(lc))->milestones != NULL)
			appendStringInfo(&build->sql, " OR m%d.k IS NOT NULL", i);
	}
	appendStringInfoString(&build->sql, ") AS active");
}

/* Appends the values, and the levels' activity if that is asked for. */
static void
append_metrics(Build *build)
{
	const HsProgress *progress = build->progress;
	ListCell   *lc;

	foreach(lc, progress->metrics)
		appendStringInfo(&build->sql, ", %s", ((HsMetric *) lfirst(lc))->sql);
	if (!progress->scope.with_activity)
		return;
	foreach(lc, progress->sources->levels)
	{
		int			i = foreach_current_index(lc);

		appendStringInfo(&build->sql,
						 ", CASE WHEN l%d.k IS NOT NULL THEN coalesce(%s, '') END",
						 i, instant_text(psprintf("l%d.at", i)));
	}
}

/* The statement that reads students within bounds. */
static char *
student_sql(HsProgress *progress, Bounds bounds)
{
	Build		build = {.progress = progress, .bounds = bounds};
	ListCell   *lc;

	initStringInfo(&build.sql);
	append_students(&build);
	appendStringInfoString(&build.sql, " SELECT u.id::text, u.email, u.address, ");
	append_active(&build);
	append_metrics(&build);
	appendStringInfoString(&build.sql, " FROM u");
	append_course(&build);
	append_streaks(&build);
	append_xp(&build);
	append_courses(&build);
	foreach(lc, progress->sources->levels)
		append_level(&build, lfirst(lc), foreach_current_index(lc));
	appendStringInfoString(&build.sql, " ORDER BY u.id, 1");
	return build.sql.data;
}

/* The statement that finds the last id of a slice; the limit comes last. */
static char *
edge_sql(HsProgress *progress, bool begins)
{
	const HsSource *users = progress->sources->users;
	Build		build = {.progress = progress, .bounds = {.begins = begins}};
	const char *id = column(users, HS_ROLE_USER);

	initStringInfo(&build.sql);
	appendStringInfo(&build.sql, "SELECT %s FROM %s AS source", id,
					 users->table);
	append_bounds(&build, id);
	appendStringInfo(&build.sql, " ORDER BY %s OFFSET $%d - 1 LIMIT 1", id,
					 begins ? 2 : 1);
	return build.sql.data;
}

/* Prepares a statement, to be kept as long as its progress. */
static SPIPlanPtr
prepare(const char *sql, int nargs, Oid *types)
{
	SPIPlanPtr	plan = SPI_prepare(sql, nargs, types);

	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare the reading of students: %s",
			 SPI_result_code_string(SPI_result));
	return plan;
}

/* ------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------
 */

/*
 * Begins to use SPI for what the school's tables hold.  Statements of this
 * kind look expensive enough to be compiled for every slice, which costs more
 * than it brings.
 */
static int
begin_reading(void)
{
	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("jit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	return guc_level;
}

static void
end_reading(int guc_level, MemoryContext caller)
{
	SPI_finish();
	AtEOXact_GUC(false, guc_level);
	MemoryContextSwitchTo(caller);
}

/* Reads which e-mail addresses several students have. */
static void
find_shared(HsProgress *progress)
{
	const HsSource *users = progress->sources->users;
	const char *email = column(users, HS_ROLE_EMAIL);
	const char *id = column(users, HS_ROLE_USER);
	char	   *sql;

	sql = psprintf("SELECT address, array_to_string((array_agg(DISTINCT id))[1:"
				   SHOWN_SHARERS "], ', ') FROM (SELECT lower(btrim(%s::text))"
				   " COLLATE \"C\" AS address, " AS_TEXT " AS id FROM %s AS source"
				   " WHERE %s IS NOT NULL AND %s IS NOT NULL%s) AS u"
				   " GROUP BY address HAVING count(DISTINCT id) > 1"
				   " ORDER BY address",
				   email, id, users->table, email, id,
				   progress->scope.email == NULL ? ""
				   : psprintf(" AND lower(btrim(%s::text)) = lower(btrim(%s))", email,
							  quote_literal_cstr(progress->scope.email)));
	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the students' addresses");
	progress->nshared = (int) SPI_processed;
	progress->shared = MemoryContextAlloc(progress->context,
										  sizeof(char *) * (SPI_processed + 1));
	progress->sharers = MemoryContextAlloc(progress->context,
										   sizeof(char *) * (SPI_processed + 1));
	for (int i = 0; i < progress->nshared; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		progress->shared[i] = MemoryContextStrdup(progress->context,
												  SPI_getvalue(row, desc, 1));
		progress->sharers[i] = MemoryContextStrdup(progress->context,
												   SPI_getvalue(row, desc, 2));
	}
}

/* MemoryContextCallback: frees the plans with their progress. */
static void
free_plans(void *arg)
{
	HsProgress *progress = arg;

	for (int i = 0; i < 2; i++)
	{
		if (progress->edge_plan[i] != NULL)
			SPI_freeplan(progress->edge_plan[i]);
		for (int j = 0; j < 2; j++)
		{
			if (progress->plan[i][j] != NULL)
				SPI_freeplan(progress->plan[i][j]);
		}
	}
}

/*
 * Looks at the school's tables.  `without` are names of properties to leave
 * out.  The result belongs to the current memory context and can be read from
 * in later transactions; its plans live as long as that context.  Throws what
 * hs_sources_find() and reading the tables throw.
 */
HsProgress *
hs_progress_open(const HsProgressScope *scope, List *without)
{
	MemoryContext caller = CurrentMemoryContext;
	HsProgress *progress = palloc0(sizeof(HsProgress));
	int			guc_level;

	progress->context = caller;
	progress->scope = *scope;
	progress->cleanup.func = free_plans;
	progress->cleanup.arg = progress;
	MemoryContextRegisterResetCallback(caller, &progress->cleanup);
	progress->sources = hs_sources_find(scope->owner);
	hs_sources_lock(progress->sources);
	progress->id_type = progress->sources->users->columns[HS_ROLE_USER].type;
	get_typlenbyval(progress->id_type, &progress->id_length,
					&progress->id_by_value);
	guc_level = begin_reading();
	MemoryContextSwitchTo(caller);
	add_metrics(progress, without);
	find_shared(progress);
	end_reading(guc_level, caller);
	return progress;
}

/* Drops lessons from the front of a list that is too long for a property. */
static char *
fit_list(char *list)
{
	int			length;
	char	   *p;

	if (list == NULL || strlen(list) <= MAX_TEXT)
		return list;
	p = list + 1;
	length = pg_mbstrlen(list);
	while (length > MAX_TEXT && *p == '"')
	{
		char	   *start = p++;

		while (*p != '"')
			p += *p == '\\' ? 2 : 1;
		p++;
		if (*p == ',')
			p++;
		length -= pg_mbstrlen_with_len(start, p - start);
	}
	p[-1] = '[';
	return p - 1;
}

/* A row of the statement as a student, in the current memory context. */
static HsStudent *
make_student(const HsProgress *progress, HeapTuple row, TupleDesc desc)
{
	int			nmetrics = list_length(progress->metrics);
	HsStudent  *student = palloc0(sizeof(HsStudent));
	bool		isnull;
	bool		active = DatumGetBool(SPI_getbinval(row, desc, ACTIVE_COLUMN,
													&isnull));
	ListCell   *lc;

	student->id = SPI_getvalue(row, desc, ID_COLUMN);
	student->email = SPI_getvalue(row, desc, EMAIL_COLUMN);
	student->address = SPI_getvalue(row, desc, ADDRESS_COLUMN);
	student->values = palloc0(sizeof(char *) * Max(nmetrics, 1));
	foreach(lc, progress->metrics)
	{
		const HsMetric *metric = lfirst(lc);
		int			i = foreach_current_index(lc);

		if (!active && metric->unset_if_idle)
			continue;
		student->values[i] = SPI_getvalue(row, desc, FIRST_VALUE + i);
		if (metric->type == HS_METRIC_TEXT)
			student->values[i] = fit_list(student->values[i]);
	}
	if (!progress->scope.with_activity)
		return student;
	student->activity = palloc0(sizeof(char *) * (list_length(progress->sources->levels) + 1));
	foreach(lc, progress->sources->levels)
	{
		int			i = foreach_current_index(lc);

		student->activity[i] = SPI_getvalue(row, desc, FIRST_VALUE + nmetrics + i);
	}
	return student;
}

/* The rows that SPI has as students, in a memory context. */
static List *
take_students(const HsProgress *progress, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	List	   *students = NIL;

	for (uint64 i = 0; i < SPI_processed; i++)
		students = lappend(students, make_student(progress, SPI_tuptable->vals[i],
												  SPI_tuptable->tupdesc));
	MemoryContextSwitchTo(old);
	return students;
}

/* Executes a plan; throws unless it returns rows. */
static void
execute(SPIPlanPtr plan, Datum *values)
{
	int			result = SPI_execute_plan(plan, values, NULL, true, 0);

	if (result != SPI_OK_SELECT)
		elog(ERROR, "could not read students: %s",
			 SPI_result_code_string(result));
}

/*
 * Finds the id that a slice ends with, in the progress' memory context.
 * Returns false if it is the last slice.
 */
static bool
find_edge(HsProgress *progress, int limit, Datum *edge)
{
	Oid			types[2] = {progress->id_type, INT4OID};
	Datum		values[2] = {progress->last, Int32GetDatum(limit)};
	bool		begins = progress->has_last;
	MemoryContext old;
	bool		isnull;
	Datum		value;

	if (progress->edge_plan[begins] == NULL)
		progress->edge_plan[begins] = prepare(edge_sql(progress, begins),
											  begins ? 2 : 1,
											  begins ? types : types + 1);
	execute(progress->edge_plan[begins], begins ? values : values + 1);
	if (SPI_processed == 0)
		return false;
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						  &isnull);
	old = MemoryContextSwitchTo(progress->context);
	if (!progress->id_by_value && progress->id_length == -1)
		value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	else
		value = datumCopy(value, progress->id_by_value, progress->id_length);
	MemoryContextSwitchTo(old);
	*edge = value;
	return true;
}

/* Reads the students up to the end of the next slice. */
static List *
read_slice(HsProgress *progress, int limit, MemoryContext context)
{
	Bounds		bounds = {.begins = progress->has_last};
	Oid			types[2] = {progress->id_type, progress->id_type};
	Datum		values[2] = {progress->last};
	Datum		edge = (Datum) 0;
	int			nargs;
	SPIPlanPtr *plan;
	List	   *students;

	bounds.ends = find_edge(progress, limit, &edge);
	values[bounds.begins ? 1 : 0] = edge;
	nargs = (bounds.begins ? 1 : 0) + (bounds.ends ? 1 : 0);
	plan = &progress->plan[bounds.begins][bounds.ends];
	if (*plan == NULL)
		*plan = prepare(student_sql(progress, bounds), nargs, types);
	execute(*plan, values);
	students = take_students(progress, context);
	if (progress->has_last && !progress->id_by_value)
		pfree(DatumGetPointer(progress->last));
	progress->last = edge;
	progress->has_last = bounds.ends;
	progress->finished = !bounds.ends;
	return students;
}

/* Reads the students who have the address asked for. */
static List *
read_by_email(HsProgress *progress, MemoryContext context)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(progress->scope.email)};
	Bounds		none = {0};

	if (progress->plan[0][0] == NULL)
		progress->plan[0][0] = prepare(student_sql(progress, none), 1, types);
	execute(progress->plan[0][0], values);
	progress->finished = true;
	return take_students(progress, context);
}

/*
 * Reads the next `limit` students, as HsStudent * in the current memory
 * context, in the order of their ids; NIL may come before the end, which
 * progress->finished tells.  Needs a transaction with a snapshot.
 */
List *
hs_progress_read(HsProgress *progress, int limit)
{
	MemoryContext caller = CurrentMemoryContext;
	int			guc_level = begin_reading();
	List	   *students;

	hs_sources_lock(progress->sources);
	if (progress->scope.email != NULL)
		students = read_by_email(progress, caller);
	else
		students = read_slice(progress, limit, caller);
	end_reading(guc_level, caller);
	return students;
}

/*
 * Which of these ids are students' who still have these addresses, as char *
 * in the current memory context.
 */
List *
hs_progress_find_users(const HsProgress *progress, const char *const *ids,
					   const char *const *addresses, int n)
{
	MemoryContext caller = CurrentMemoryContext;
	const HsSource *users = progress->sources->users;
	const char *id = column(users, HS_ROLE_USER);
	const char *email = column(users, HS_ROLE_EMAIL);
	Oid			types[2] = {TEXTARRAYOID, TEXTARRAYOID};
	Datum		values[2] = {hs_catalog_text_array(ids, n),
							 hs_catalog_text_array(addresses, n)};
	int			guc_level = begin_reading();
	List	   *found = NIL;
	char	   *sql;

	hs_sources_lock(progress->sources);
	sql = psprintf("SELECT h.id FROM (SELECT " AS_TEXT " AS id,"
				   " lower(btrim(%s::text)) COLLATE \"C\" AS address"
				   " FROM %s AS source) AS s"
				   " JOIN unnest($1, $2) AS h(id, address)"
				   " ON h.id = s.id AND h.address = s.address",
				   id, email, users->table);
	if (SPI_execute_with_args(sql, 2, types, values, NULL, true, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not read users");
	MemoryContextSwitchTo(caller);
	for (uint64 i = 0; i < SPI_processed; i++)
		found = lappend(found, SPI_getvalue(SPI_tuptable->vals[i],
											SPI_tuptable->tupdesc, 1));
	end_reading(guc_level, caller);
	return found;
}

/* ------------------------------------------------------------------------
 * Students
 * ------------------------------------------------------------------------
 */

/*
 * The ids of the students who have an address, if there are several; else
 * NULL.
 */
static const char *
find_sharers(const HsProgress *progress, const char *address)
{
	int			low = 0;
	int			high = progress->nshared - 1;

	while (low <= high)
	{
		int			middle = (low + high) / 2;
		int			order = strcmp(address, progress->shared[middle]);

		if (order == 0)
			return progress->sharers[middle];
		if (order < 0)
			high = middle - 1;
		else
			low = middle + 1;
	}
	return NULL;
}

/* Whether a text can be an e-mail address at all. */
static bool
looks_like_address(const char *address)
{
	const char *at = strchr(address, '@');

	if (at == NULL || at == address || strchr(at + 1, '@') != NULL ||
		strlen(address) > MAX_ADDRESS)
		return false;
	for (const char *p = address; *p != '\0'; p++)
	{
		if ((unsigned char) *p <= ' ' || *p == 0x7f || *p == ',' || *p == ';')
			return false;
	}
	return at[1] != '\0' && at[1] != '.' && strchr(at + 1, '.') != NULL &&
		address[strlen(address) - 1] != '.';
}

/*
 * Why a student cannot be sent, NULL if nothing is in the way; sets the
 * category for sync_errors.
 */
const char *
hs_progress_problem(const HsProgress *progress, const HsStudent *student,
					const char **category)
{
	const char *sharers;

	if (strlen(student->id) > HS_MAX_STUDENT_ID)
	{
		*category = "invalid_id";
		return psprintf("the student's id is longer than %d bytes",
						HS_MAX_STUDENT_ID);
	}
	if (student->address == NULL || student->address[0] == '\0')
	{
		*category = "no_email";
		return "the student has no e-mail address";
	}
	if (!looks_like_address(student->address))
	{
		*category = "invalid_email";
		return psprintf("\"%s\" is no e-mail address",
						hs_json_clip(student->email, MAX_ADDRESS));
	}
	sharers = find_sharers(progress, student->address);
	if (sharers != NULL)
	{
		*category = "duplicate_email";
		return psprintf("several students have the e-mail address %s: %s",
						student->address, sharers);
	}
	return NULL;
}

/*
 * Appends a student's values as members of a JSON object.
 */
void
hs_progress_append_values(StringInfo out, const HsProgress *progress,
						  const HsStudent *student)
{
	bool		first = true;
	ListCell   *lc;

	foreach(lc, progress->metrics)
	{
		const char *value = student->values[foreach_current_index(lc)];

		if (value == NULL)
			continue;
		if (!first)
			appendStringInfoChar(out, ',');
		appendStringInfo(out, "\"%s\":", ((HsMetric *) lfirst(lc))->name);
		hs_json_append_string(out, value);
		first = false;
	}
}

/*
 * A number that is the same as long as the values are; never 0.
 */
int64
hs_progress_fingerprint(const HsProgress *progress, const HsStudent *student)
{
	uint64		hash = progress->seed;

	for (int i = 0; i < list_length(progress->metrics); i++)
	{
		const char *value = student->values[i];

		if (value == NULL)
			hash = hash_bytes_extended((const unsigned char *) "", 1, hash);
		else
			hash = hash_bytes_extended((const unsigned char *) value,
									   strlen(value), hash);
	}
	return hash == 0 ? 1 : (int64) hash;
}

/*
 * What is left out and why, as one text; NULL if nothing is.
 */
char *
hs_progress_remarks(const HsProgress *progress)
{
	StringInfoData text;
	ListCell   *lc;

	if (progress->sources->remarks == NIL)
		return NULL;
	initStringInfo(&text);
	foreach(lc, progress->sources->remarks)
		appendStringInfo(&text, "%s%s", text.len > 0 ? "; " : "left out: ",
						 (char *) lfirst(lc));
	return text.data;
}
