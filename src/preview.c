/*-------------------------------------------------------------------------
 *
 * preview.c
 *	  What SQL reads of students' progress.
 *
 * Everything is computed by the same statements as the push, with the
 * caller's rights and row security, in the caller's snapshot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "change.h"
#include "compat.h"
#include "guc.h"
#include "json.h"
#include "progress.h"
#include "properties.h"
#include "request.h"

PG_FUNCTION_INFO_V1(hubspot_sync_preview);
PG_FUNCTION_INFO_V1(hubspot_sync_read_progress);

/* Columns of read_student_progress() beside those of metrics. */
#define LEVELS_COLUMN "levels"
#define ACTIVITY_COLUMN "level_activity"

/* Rows on their way to the caller. */
typedef struct Output
{
	ReturnSetInfo *rsinfo;
	AttInMetadata *input;
	HsProgress *progress;
	pg_uuid_t	connection_id;
} Output;

typedef void (*SliceWriter)(Output *output, List *students);

/* Reads all students and hands them over slice by slice. */
static void
for_each_slice(Output *output, SliceWriter write)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "hubspot_sync students",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	while (!output->progress->finished)
	{
		CHECK_FOR_INTERRUPTS();
		write(output, hs_progress_read(output->progress, hs_progress_slice));
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* Begins a function that returns rows about students. */
static void
begin_output(FunctionCallInfo fcinfo, const HsProgressScope *scope,
			 List *without, Output *output)
{
	InitMaterializedSRF(fcinfo, 0);
	output->rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	output->input = TupleDescGetAttInMetadata(output->rsinfo->setDesc);
	output->progress = hs_progress_open(scope, without);
}

/* Adds a row of texts, NULL for null. */
static void
put_row(Output *output, char **values)
{
	HeapTuple	tuple = BuildTupleFromCStrings(output->input, values);

	tuplestore_puttuple(output->rsinfo->setResult, tuple);
	heap_freetuple(tuple);
}

/* ------------------------------------------------------------------------
 * preview_student_progress()
 * ------------------------------------------------------------------------
 */

/* The contacts of students that the state does not know. */
static const char **
look_contacts_up(Output *output, const HsChange *changes, int n)
{
	const char **emails = palloc(sizeof(char *) * Max(n, 1));
	const char **contacts = palloc(sizeof(char *) * Max(n, 1));

	for (int i = 0; i < n; i++)
		emails[i] = changes[i].student->address;
	hs_catalog_contacts_by_email(&output->connection_id, emails, n, contacts);
	return contacts;
}

static void
write_preview(Output *output, List *students)
{
	int			n = list_length(students);
	HsChange   *changes = hs_change_find(output->progress,
										 &output->connection_id, students,
										 false);
	const char **contacts = look_contacts_up(output, changes, n);

	for (int i = 0; i < n; i++)
	{
		const HsChange *change = &changes[i];
		const char *known = change->state &&
			strcmp(change->state->email, change->student->address) == 0
			? change->state->contact_id : contacts[i];
		StringInfoData properties;
		char	   *values[6];

		initStringInfo(&properties);
		appendStringInfoChar(&properties, '{');
		hs_progress_append_values(&properties, output->progress,
								  change->student);
		appendStringInfoChar(&properties, '}');
		values[0] = change->student->id;
		values[1] = change->student->email;
		values[2] = unconstify(char *, known);
		values[3] = change->differs ? "true" : "false";
		values[4] = change->properties ? change->properties : properties.data;
		values[5] = unconstify(char *, change->problem);
		put_row(output, values);
	}
}

/*
 * preview_student_progress(email) ->
 * (user_id, email, hubspot_contact_id, changed, properties, problem)
 */
Datum
hubspot_sync_preview(PG_FUNCTION_ARGS)
{
	HsProgressScope scope = {0};
	HsConnection connection;
	Output		output = {0};
	List	   *unusable;
	bool		fresh;

	if (!PG_ARGISNULL(0))
		scope.email = text_to_cstring(PG_GETARG_TEXT_PP(0));
	hs_request_connection(NULL, &connection);
	output.connection_id = connection.id;
	unusable = hs_properties_unusable(&connection.id, &fresh);
	begin_output(fcinfo, &scope, hs_properties_names(unusable), &output);
	for_each_slice(&output, write_preview);
	return (Datum) 0;
}

/* ------------------------------------------------------------------------
 * read_student_progress()
 * ------------------------------------------------------------------------
 */

/* What is told of each level, in this order. */
static const char *const level_parts[] = {
	"units_completed", "accuracy", "milestones", "status"
};

/* Appends a student's value for a part of a level, a number as such. */
static void
append_part(StringInfo json, const HsProgress *progress,
			const HsStudent *student, const char *level, const char *part)
{
	const HsMetric *metric = NULL;
	const char *value = NULL;
	ListCell   *lc;

	foreach(lc, progress->metrics)
	{
		const HsMetric *other = lfirst(lc);

		if (other->level == NULL || strcmp(other->level, level) != 0 ||
			strcmp(other->part, part) != 0)
			continue;
		metric = other;
		value = student->values[foreach_current_index(lc)];
	}
	appendStringInfo(json, "\"%s\": ", part);
	if (value == NULL)
		appendStringInfoString(json, "null");
	else if (metric->type == HS_METRIC_NUMBER)
		appendStringInfoString(json, value);
	else
		hs_json_append_string(json, value);
}

/* A student's levels as a JSON object. */
static char *
levels_json(const HsProgress *progress, const HsStudent *student)
{
	StringInfoData json;
	ListCell   *lc;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	foreach(lc, progress->sources->levels)
	{
		const char *level = ((HsLevel *) lfirst(lc))->name;

		appendStringInfo(&json, "%s\"%s\": {",
						 foreach_current_index(lc) > 0 ? ", " : "", level);
		for (size_t i = 0; i < lengthof(level_parts); i++)
		{
			if (i > 0)
				appendStringInfoString(&json, ", ");
			append_part(&json, progress, student, level, level_parts[i]);
		}
		appendStringInfoChar(&json, '}');
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

/* The newest activity on each level as a JSON object. */
static char *
activity_json(const HsProgress *progress, const HsStudent *student)
{
	StringInfoData json;
	ListCell   *lc;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	foreach(lc, progress->sources->levels)
	{
		const char *at = student->activity[foreach_current_index(lc)];

		if (at == NULL)
			continue;
		appendStringInfo(&json, "%s\"%s\": ", json.len > 1 ? ", " : "",
						 ((HsLevel *) lfirst(lc))->name);
		if (at[0] != '\0')
			hs_json_append_string(&json, at);
		else
			appendStringInfoString(&json, "null");
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

/* A student's value for a column of the result. */
static char *
column_value(const HsProgress *progress, const HsStudent *student,
			 const char *column)
{
	ListCell   *lc;

	if (strcmp(column, "user_id") == 0)
		return student->id;
	if (strcmp(column, "email") == 0)
		return student->email;
	if (strcmp(column, LEVELS_COLUMN) == 0)
		return levels_json(progress, student);
	if (strcmp(column, ACTIVITY_COLUMN) == 0)
		return activity_json(progress, student);
	foreach(lc, progress->metrics)
	{
		if (strcmp(((HsMetric *) lfirst(lc))->name, column) == 0)
			return student->values[foreach_current_index(lc)];
	}
	return NULL;
}

static void
write_progress(Output *output, List *students)
{
	TupleDesc	desc = output->rsinfo->setDesc;
	char	  **values = palloc(sizeof(char *) * desc->natts);
	ListCell   *lc;

	foreach(lc, students)
	{
		for (int i = 0; i < desc->natts; i++)
			values[i] = column_value(output->progress, lfirst(lc),
									 NameStr(TupleDescAttr(desc, i)->attname));
		put_row(output, values);
	}
}

/*
 * read_student_progress() -> one row a student; see the view
 * student_progress.
 */
Datum
hubspot_sync_read_progress(PG_FUNCTION_ARGS)
{
	HsProgressScope scope = {.with_activity = true};
	Output		output = {0};

	begin_output(fcinfo, &scope, NIL, &output);
	for_each_slice(&output, write_progress);
	return (Datum) 0;
}
