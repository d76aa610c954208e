/*-------------------------------------------------------------------------
 *
 * target.c
 *	  The statements that read and write a target table.
 *
 * The most important one takes an array per column, mostly of text, and stores
 * a page of records:
 *
 *	  INSERT INTO target (...)
 *	  SELECT ... FROM unnest($3::text[], ...) LEFT JOIN target
 *	  WHERE the row is new, or differs and is not older
 *	  ON CONFLICT (key) DO UPDATE SET ...
 *
 * The join is what makes unchanged pages free: ON CONFLICT ... WHERE would
 * lock, and so write, every row before it looks.  All statements run as the
 * target's owner, who is the worker's role, with all that hangs on the table;
 * they need a transaction with a snapshot and throw what that throws.
 *
 * Rows that the sync did not write are never marked, deleted or missed.  A
 * target's own column synced_at tells them; where a target keeps its books in
 * sync_rows, the caller leaves them out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "target.h"

/* The storing statement's fixed parameters come before the arrays. */
#define PARAM_CONNECTION 1
#define PARAM_PROVISIONAL 2
#define FIXED_PARAMS 2

/*
 * How long what is archived may come back: HubSpot keeps it for 90 days
 * (facts section 7).
 */
#define RESTORABLE_FOR "interval '91 days'"

/* ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/* A column's type, without its modifier: a value too long is an error. */
static const char *
plain_type(const HsColumn *column)
{
	return format_type_extended(column->type, -1,
								FORMAT_TYPE_FORCE_QUALIFY |
									FORMAT_TYPE_TYPEMOD_GIVEN);
}

/*
 * Appends the condition that a stored value differs from the new one.  What
 * a type modifier rounds is rounded before comparing; types whose equality
 * pg_catalog does not have are compared as text.
 */
static void
append_differs(StringInfo sql, const HsColumn *column)
{
	const char *name = quote_identifier(column->name);
	TypeCacheEntry *entry = lookup_type_cache(column->type, TYPECACHE_EQ_OPR);
	bool		as_text = !OidIsValid(entry->eq_opr) ||
		(entry->typtype == TYPTYPE_BASE &&
		 get_func_namespace(get_opcode(entry->eq_opr)) != PG_CATALOG_NAMESPACE);

	if (as_text)
		appendStringInfo(sql, "e.%s::text IS DISTINCT FROM i.%s::text",
						 name, name);
	else if (column->typmod >= 0 && column->category != TYPCATEGORY_STRING)
		appendStringInfo(sql, "e.%s IS DISTINCT FROM i.%s::%s", name, name,
						 format_type_extended(column->type, column->typmod,
											  FORMAT_TYPE_FORCE_QUALIFY |
												  FORMAT_TYPE_TYPEMOD_GIVEN));
	else
		appendStringInfo(sql, "e.%s IS DISTINCT FROM i.%s", name, name);
}

/* Appends the columns in order, each with a prefix. */
static void
append_columns(StringInfo sql, const HsMapping *mapping, const char *prefix)
{
	for (int i = 0; i < mapping->ncolumns; i++)
		appendStringInfo(sql, "%s%s%s", i > 0 ? ", " : "", prefix,
						 quote_identifier(mapping->columns[i].name));
}

/* A type in which a column's values are handed to the storing statement. */
typedef struct InputType
{
	const char *name;
	Oid			oid;
	Oid			array;
	int16		len;
	bool		by_value;
	char		align;
} InputType;

static const InputType text_input =
	{"pg_catalog.text", TEXTOID, TEXTARRAYOID, -1, false, TYPALIGN_INT};
static const InputType jsonb_input =
	{"pg_catalog.jsonb", JSONBOID, JSONBARRAYOID, -1, false, TYPALIGN_INT};
static const InputType bool_input =
	{"pg_catalog.bool", BOOLOID, BOOLARRAYOID, 1, true, TYPALIGN_CHAR};
static const InputType time_input =
	{"pg_catalog.timestamptz", TIMESTAMPTZOID, TIMESTAMPTZARRAYOID,
	 sizeof(TimestampTz), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE};

/*
 * What comes from HubSpot is text, which the column's type reads in the
 * statement; what hs_mapping_own_value() has is of that type already.
 */
static const InputType *
input_type(const HsColumn *column)
{
	switch (column->kind)
	{
		case HS_COLUMN_PROPERTIES:
			return &jsonb_input;
		case HS_COLUMN_ARCHIVED:
			return &bool_input;
		case HS_COLUMN_ARCHIVED_AT:
		case HS_COLUMN_UPDATED_AT:
			return &time_input;
		default:
			return &text_input;
	}
}

/* Appends the derived table of typed input rows. */
static void
append_input(StringInfo sql, const HsMapping *mapping)
{
	appendStringInfoString(sql, "(SELECT ");
	for (int i = 0; i < mapping->ncolumns; i++)
	{
		const HsColumn *column = &mapping->columns[i];
		const char *name = quote_identifier(column->name);

		if (i > 0)
			appendStringInfoString(sql, ", ");
		if (column->kind == HS_COLUMN_NOW)
			appendStringInfo(sql, "now()::%s AS %s", plain_type(column), name);
		else if (column->kind == HS_COLUMN_CONNECTION)
			appendStringInfo(sql, "$%d AS %s", PARAM_CONNECTION, name);
		else
			appendStringInfo(sql, "u.c%d::%s AS %s", i, plain_type(column),
							 name);
	}
	appendStringInfoString(sql, " FROM unnest(");
	for (int i = 0; i < mapping->ninputs; i++)
		appendStringInfo(sql, "%s$%d::%s[]", i > 0 ? ", " : "",
						 FIXED_PARAMS + 1 + i,
						 input_type(&mapping->columns[i])->name);
	appendStringInfoString(sql, ") AS u(");
	for (int i = 0; i < mapping->ninputs; i++)
		appendStringInfo(sql, "%sc%d", i > 0 ? ", " : "", i);
	appendStringInfoString(sql, ")) i");
}

/* Appends the condition under which a known row is written. */
static void
append_condition(StringInfo sql, const HsMapping *mapping)
{
	const char *separator = "";

	if (mapping->owns[HS_COLUMN_UPDATED_AT])
		appendStringInfoString(sql, "(i.hubspot_updated_at >= e.hubspot_updated_at) IS NOT FALSE AND ");
	if (mapping->owns[HS_COLUMN_UPDATED_AT] &&
		mapping->owns[HS_COLUMN_ARCHIVED])
		appendStringInfo(sql, "NOT ($%d AND e.archived AND NOT i.archived"
							  " AND (i.hubspot_updated_at <= e.hubspot_updated_at%s)) AND ",
						 PARAM_PROVISIONAL,
						 mapping->owns[HS_COLUMN_REASON]
						 ? " OR e.archived_reason IN ('" HS_REASON_GONE "', '" HS_REASON_MERGED "')"
						 : "");
	/* What was merged may lie in the recycle bin as well. */
	if (mapping->owns[HS_COLUMN_ARCHIVED] &&
		mapping->owns[HS_COLUMN_MERGED_INTO])
		appendStringInfoString(sql, "NOT (i.archived AND e.archived"
									" AND e.merged_into IS NOT NULL) AND ");
	appendStringInfoChar(sql, '(');
	for (int i = 0; i < mapping->ncolumns; i++)
	{
		const HsColumn *column = &mapping->columns[i];

		if (column->is_key || column->insert_only ||
			column->kind == HS_COLUMN_NOW)
			continue;
		appendStringInfoString(sql, separator);
		append_differs(sql, column);
		separator = " OR ";
	}
	appendStringInfoString(sql, *separator ? ")" : "false)");
}

/* Appends the join condition or the conflict target: the key columns. */
static void
append_key(StringInfo sql, const HsMapping *mapping, bool join)
{
	const char *separator = "";

	for (int i = 0; i < mapping->ncolumns; i++)
	{
		const char *name = quote_identifier(mapping->columns[i].name);

		if (!mapping->columns[i].is_key)
			continue;
		if (join)
			appendStringInfo(sql, "%se.%s = i.%s", separator, name, name);
		else
			appendStringInfo(sql, "%s%s", separator, name);
		separator = join ? " AND " : ", ";
	}
}

/* Appends the assignments of ON CONFLICT DO UPDATE. */
static void
append_assignments(StringInfo sql, const HsMapping *mapping)
{
	const char *separator = " DO UPDATE SET ";
	const char *nothing = " DO NOTHING";

	for (int i = 0; i < mapping->ncolumns; i++)
	{
		const char *name = quote_identifier(mapping->columns[i].name);

		if (mapping->columns[i].is_key || mapping->columns[i].insert_only)
			continue;
		appendStringInfo(sql, "%s%s = excluded.%s", separator, name, name);
		separator = ", ";
		nothing = "";
	}
	appendStringInfoString(sql, nothing);
}

/* The id's column: the key that is not the connection. */
static const HsColumn *
id_column(const HsMapping *mapping)
{
	Assert(mapping->columns[0].kind == HS_COLUMN_ID);
	return &mapping->columns[0];
}

static char *
build_store_sql(const HsMapping *mapping)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "INSERT INTO %s (", mapping->target);
	append_columns(&sql, mapping, "");
	appendStringInfoString(&sql, ") SELECT ");
	append_columns(&sql, mapping, "i.");
	appendStringInfoString(&sql, " FROM ");
	append_input(&sql, mapping);
	appendStringInfo(&sql, " LEFT JOIN %s%s e ON ", mapping->only,
					 mapping->target);
	append_key(&sql, mapping, true);
	appendStringInfo(&sql, " WHERE e.%s IS NULL OR (",
					 quote_identifier(id_column(mapping)->name));
	append_condition(&sql, mapping);
	appendStringInfoString(&sql, ") ON CONFLICT (");
	append_key(&sql, mapping, false);
	appendStringInfoChar(&sql, ')');
	append_assignments(&sql, mapping);
	if (mapping->keeps_owner_history)
		appendStringInfo(&sql, " RETURNING %s::text",
						 quote_identifier(id_column(mapping)->name));
	return sql.data;
}

/* ------------------------------------------------------------------------
 * Statements about single records
 * ------------------------------------------------------------------------
 */

/*
 * The type to compare ids as: one that can hold every id and for which an
 * index on the column serves.
 */
static const char *
id_type(const HsMapping *mapping)
{
	const HsColumn *column = id_column(mapping);

	switch (column->type)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
			return "pg_catalog.int8";
		default:
			return column->category == TYPCATEGORY_NUMERIC
				? "pg_catalog.numeric" : plain_type(column);
	}
}

/*
 * Appends the condition that a row is this connection's and was written by
 * the sync.
 */
static void
append_ours(StringInfo sql, const HsMapping *mapping)
{
	if (mapping->has_connection)
		appendStringInfoString(sql, "e.connection_id = $1");
	else
		appendStringInfoString(sql, "$1 IS NOT NULL");
	if (mapping->owns[HS_COLUMN_NOW])
		appendStringInfoString(sql, " AND e.synced_at IS NOT NULL");
}

/*
 * The condition that a row is one of the records $2.  An array looked up
 * makes an index serve; joined, it might be looped over for every row.
 */
static char *
among_records(const HsMapping *mapping)
{
	return psprintf("e.%s = ANY ($2::text[]::%s[])",
					quote_identifier(id_column(mapping)->name),
					id_type(mapping));
}

/* What the array $`param` says of a row's record, parallel to $2. */
static char *
said_of_row(const HsMapping *mapping, int param)
{
	return psprintf("($%d::text[])[array_position($2::text[]::%s[], e.%s::%s)]",
					param, id_type(mapping),
					quote_identifier(id_column(mapping)->name),
					id_type(mapping));
}

/* Appends the condition that a row is not newer than what $3 says of it. */
static void
append_not_newer(StringInfo sql, const HsMapping *mapping)
{
	if (mapping->owns[HS_COLUMN_UPDATED_AT])
		appendStringInfo(sql, " AND (%s::pg_catalog.timestamptz"
							  " >= e.hubspot_updated_at) IS NOT FALSE",
						 said_of_row(mapping, 3));
}

static char *
build_delete_sql(const HsMapping *mapping)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "DELETE FROM %s%s e WHERE %s AND ", mapping->only,
					 mapping->target, among_records(mapping));
	append_ours(&sql, mapping);
	append_not_newer(&sql, mapping);
	return sql.data;
}

/* Appends the assignments that mark a row. */
static void
append_marks(StringInfo sql, const HsMapping *mapping)
{
	appendStringInfoString(sql, "archived = true");
	if (mapping->owns[HS_COLUMN_ARCHIVED_AT])
		appendStringInfo(sql, ", archived_at = CASE WHEN e.archived"
							  " THEN e.archived_at ELSE coalesce("
							  "%s::pg_catalog.timestamptz, now()) END",
						 said_of_row(mapping, 4));
	if (mapping->owns[HS_COLUMN_REASON])
		appendStringInfo(sql, ", archived_reason = %s",
						 said_of_row(mapping, 5));
	if (mapping->owns[HS_COLUMN_MERGED_INTO])
		appendStringInfo(sql, ", merged_into = %s", said_of_row(mapping, 6));
	for (int i = 0; i < mapping->ncolumns; i++)
	{
		const HsColumn *column = &mapping->columns[i];

		if (column->kind == HS_COLUMN_NOW && !column->insert_only)
			appendStringInfo(sql, ", %s = now()::%s",
							 quote_identifier(column->name),
							 plain_type(column));
	}
}

/* What archives rows; NULL for a target without the column for it. */
static char *
build_mark_sql(const HsMapping *mapping)
{
	StringInfoData sql;

	if (!mapping->owns[HS_COLUMN_ARCHIVED])
		return NULL;
	initStringInfo(&sql);
	appendStringInfo(&sql, "UPDATE %s%s e SET ", mapping->only,
					 mapping->target);
	append_marks(&sql, mapping);
	appendStringInfo(&sql, " WHERE %s AND ", among_records(mapping));
	append_ours(&sql, mapping);
	append_not_newer(&sql, mapping);
	appendStringInfoString(&sql, " AND (e.archived IS NOT TRUE");
	if (mapping->owns[HS_COLUMN_MERGED_INTO])
		appendStringInfo(&sql, " OR (%s IS NOT NULL"
							   " AND e.merged_into IS DISTINCT FROM %s)",
						 said_of_row(mapping, 6), said_of_row(mapping, 6));
	if (mapping->owns[HS_COLUMN_REASON])
		appendStringInfo(&sql, " OR (e.archived_reason = '" HS_REASON_ARCHIVED
							   "' AND %s IN ('" HS_REASON_GONE "', '" HS_REASON_FILTERED "'))",
						 said_of_row(mapping, 5));
	appendStringInfoChar(&sql, ')');
	return sql.data;
}

/*
 * Which of our rows have an id from $2 to $3: live ones, or archived ones that
 * may come back.  Of ids with as many digits text and numbers have one order,
 * so that an index on either serves.  Where they have not (`spanning`), all of
 * a text key's index is read, once, for the ends of a list.
 */
static char *
build_range_sql(const HsMapping *mapping, bool archived, bool spanning)
{
	const char *id = quote_identifier(id_column(mapping)->name);
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT e.%s::text FROM %s%s e WHERE ", id,
					 mapping->only, mapping->target);
	if (id_column(mapping)->category == TYPCATEGORY_NUMERIC)
		appendStringInfo(&sql, "e.%s >= $2::%s AND e.%s <= $3::%s AND ", id,
						 id_type(mapping), id, id_type(mapping));
	else if (spanning)
		appendStringInfo(&sql, "(length(e.%s::text), e.%s::text)"
							   " BETWEEN (length($2), $2) AND (length($3), $3) AND ",
						 id, id);
	else
		appendStringInfo(&sql, "e.%s >= $2::%s AND e.%s <= $3::%s"
							   " AND octet_length(e.%s::text) = octet_length($2) AND ",
						 id, id_type(mapping), id, id_type(mapping), id);
	append_ours(&sql, mapping);
	appendStringInfo(&sql, " AND e.archived IS %sTRUE", archived ? "" : "NOT ");
	if (archived && mapping->owns[HS_COLUMN_ARCHIVED_AT])
		appendStringInfoString(&sql, " AND coalesce(e.archived_at,"
									 " e.synced_at) > now() - " RESTORABLE_FOR);
	if (archived && mapping->owns[HS_COLUMN_REASON])
		appendStringInfoString(&sql, " AND coalesce(e.archived_reason, '') NOT"
									 " IN ('" HS_REASON_MERGED "', '" HS_REASON_GONE "', '"
							   HS_REASON_FILTERED "')");
	return sql.data;
}

/*
 * Which of the records $2, of which others say that they were merged into
 * them ($3), have a row that does not say so.
 */
static char *
build_merged_sql(const HsMapping *mapping)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT i.id, i.survivor"
						   " FROM unnest($2::text[], $3::text[]) AS i(id, survivor)"
						   " CROSS JOIN LATERAL (SELECT FROM %s%s e"
						   " WHERE e.%s = i.id::%s AND ",
					 mapping->only, mapping->target,
					 quote_identifier(id_column(mapping)->name),
					 id_type(mapping));
	append_ours(&sql, mapping);
	appendStringInfoString(&sql, " AND (e.archived IS NOT TRUE");
	if (mapping->owns[HS_COLUMN_MERGED_INTO])
		appendStringInfoString(&sql, " OR e.merged_into IS DISTINCT FROM i.survivor");
	appendStringInfoString(&sql, ") LIMIT 1) e");
	return sql.data;
}

/*
 * Which of the records $2 have a row that says they are gone or merged away.
 */
static char *
build_buried_sql(const HsMapping *mapping)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT e.%s::text FROM %s%s e WHERE %s AND ",
					 quote_identifier(id_column(mapping)->name), mapping->only,
					 mapping->target, among_records(mapping));
	append_ours(&sql, mapping);
	appendStringInfoString(&sql, " AND e.archived AND e.archived_reason IN ('"
						   HS_REASON_GONE "', '" HS_REASON_MERGED "')");
	return sql.data;
}

/* How many live rows of ours there are. */
static char *
build_count_sql(const HsMapping *mapping)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT count(*)::float8 FROM %s%s e WHERE ",
					 mapping->only, mapping->target);
	append_ours(&sql, mapping);
	appendStringInfoString(&sql, " AND e.archived IS NOT TRUE");
	return sql.data;
}

/*
 * Builds the statements of a mapping in the current memory context.  Those
 * that read the target's own books are for targets that have them.
 */
void
hs_target_build(HsMapping *mapping)
{
	mapping->store.sql = build_store_sql(mapping);
	mapping->delete.sql = build_delete_sql(mapping);
	mapping->mark.sql = build_mark_sql(mapping);
	if (mapping->keeps_rows)
		return;
	for (int spanning = 0; spanning < 2; spanning++)
	{
		mapping->live_in_range[spanning].sql =
			build_range_sql(mapping, false, spanning);
		mapping->archived_in_range[spanning].sql =
			build_range_sql(mapping, true, spanning);
	}
	mapping->merged.sql = build_merged_sql(mapping);
	mapping->count.sql = build_count_sql(mapping);
	if (mapping->owns[HS_COLUMN_REASON])
		mapping->buried.sql = build_buried_sql(mapping);
}

/* ------------------------------------------------------------------------
 * Running them
 * ------------------------------------------------------------------------
 */

/*
 * Prepares a statement for the rest of the process, with one plan for all
 * pages: access by index is preferred while it is planned, and no longer, so
 * that triggers do not see that.
 */
static void
prepare(HsStatement *statement, int nargs, Oid *types)
{
	if (statement->plan != NULL)
		return;
	statement->plan = SPI_prepare_cursor(statement->sql, nargs, types,
										 CURSOR_OPT_GENERIC_PLAN);
	if (statement->plan == NULL || SPI_keepplan(statement->plan) != 0)
		elog(ERROR, "could not prepare a statement on the target table: %s",
			 SPI_result_code_string(SPI_result));
}

/*
 * Executes a prepared statement and returns how many rows it returned or
 * wrote.
 */
static uint64
execute(const HsStatement *statement, Datum *values)
{
	int			guc_level = NewGUCNestLevel();
	int			result;

	hs_catalog_plan_by_index();
	ReleaseCachedPlan(SPI_plan_get_cached_plan(statement->plan),
					  CurrentResourceOwner);
	AtEOXact_GUC(false, guc_level);
	result = SPI_execute_plan(statement->plan, values, NULL, false, 0);
	if (result < 0)
		elog(ERROR, "a statement on the target table failed: %s",
			 SPI_result_code_string(result));
	return SPI_processed;
}

/* Column `i` of all records as an array of text. */
static Datum
text_array(HsRecord *const *records, int n, int i)
{
	const char **values = palloc(sizeof(char *) * n);

	for (int r = 0; r < n; r++)
		values[r] = records[r]->values[i];
	return hs_catalog_text_array(values, n);
}

/* Column `i` of all records as an array of the type that input_type() says. */
static Datum
column_array(const HsMapping *mapping, HsRecord *const *records, int n, int i)
{
	const InputType *type = input_type(&mapping->columns[i]);
	Datum	   *values;
	bool	   *nulls;
	int			lower = 1;

	if (type == &text_input)
		return text_array(records, n, i);
	values = palloc(sizeof(Datum) * n);
	nulls = palloc(sizeof(bool) * n);
	for (int r = 0; r < n; r++)
		values[r] = hs_mapping_own_value(mapping, &mapping->columns[i],
										 records[r], &nulls[r]);
	return PointerGetDatum(construct_md_array(values, nulls, 1, &n, &lower,
											  type->oid, type->len,
											  type->by_value, type->align));
}

/*
 * A column of type text of the current result, NULL for null, in the current
 * memory context.
 */
static char *
result_text(uint64 row, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/*
 * Stores records, which must have distinct ids, and returns how many rows
 * were written.  `provisional` records come from search, whose index may lag
 * behind: they do not bring an archived row back to life.  Of contacts the
 * ids of the rows written (char *) are added to `written`.
 */
uint64
hs_target_store(HsMapping *mapping, const pg_uuid_t *connection_id,
				bool provisional, HsRecord *const *records, int n,
				List **written_ids)
{
	MemoryContext caller = CurrentMemoryContext;
	int			nargs = FIXED_PARAMS + mapping->ninputs;
	Oid		   *types = palloc(sizeof(Oid) * nargs);
	Datum	   *values = palloc(sizeof(Datum) * nargs);
	uint64		written;

	types[PARAM_CONNECTION - 1] = UUIDOID;
	types[PARAM_PROVISIONAL - 1] = BOOLOID;
	values[PARAM_CONNECTION - 1] = PointerGetDatum(connection_id);
	values[PARAM_PROVISIONAL - 1] = BoolGetDatum(provisional);
	for (int i = 0; i < mapping->ninputs; i++)
	{
		types[FIXED_PARAMS + i] = input_type(&mapping->columns[i])->array;
		values[FIXED_PARAMS + i] = column_array(mapping, records, n, i);
	}
	SPI_connect();
	prepare(&mapping->store, nargs, types);
	written = execute(&mapping->store, values);
	MemoryContextSwitchTo(caller);
	for (uint64 i = 0; mapping->keeps_owner_history && i < written; i++)
		*written_ids = lappend(*written_ids, result_text(i, 1));
	SPI_finish();
	return written;
}

/* What is known of single records, as parallel arrays of text. */
typedef struct Notes
{
	const char **ids;
	const char **changed;
	const char **at;
	const char **reasons;
	const char **survivors;
} Notes;

/* Takes the arrays out of records. */
static Notes
notes_of(HsRecord *const *records, int n)
{
	Notes		notes = {
		.ids = palloc(sizeof(char *) * n),
		.changed = palloc(sizeof(char *) * n),
		.at = palloc(sizeof(char *) * n),
		.reasons = palloc(sizeof(char *) * n),
		.survivors = palloc(sizeof(char *) * n)
	};

	for (int i = 0; i < n; i++)
	{
		const HsRecord *r = records[i];

		notes.ids[i] = r->id;
		notes.changed[i] = hs_mapping_time_text(r->updated_at);
		notes.at[i] = hs_mapping_time_text(r->archived_at);
		notes.reasons[i] = r->reason;
		notes.survivors[i] = r->merged_into;
	}
	return notes;
}

#define MAX_ARRAYS 5

/*
 * Prepares and executes a statement that takes the connection and arrays of
 * text.  Needs an SPI connection.
 */
static uint64
execute_on_arrays(HsStatement *statement, const pg_uuid_t *connection_id,
				  const char *const *const *arrays, int narrays, int n)
{
	Oid			types[1 + MAX_ARRAYS] = {UUIDOID};
	Datum		values[1 + MAX_ARRAYS] = {PointerGetDatum(connection_id)};

	for (int i = 0; i < narrays; i++)
	{
		types[1 + i] = TEXTARRAYOID;
		values[1 + i] = hs_catalog_text_array(arrays[i], n);
	}
	prepare(statement, 1 + narrays, types);
	return execute(statement, values);
}

/*
 * Deletes the rows of records and returns how many there were.
 */
uint64
hs_target_delete(HsMapping *mapping, const pg_uuid_t *connection_id,
				 HsRecord *const *records, int n)
{
	Notes		notes = notes_of(records, n);
	const char *const *arrays[] = {notes.ids, notes.changed};
	uint64		deleted;

	SPI_connect();
	deleted = execute_on_arrays(&mapping->delete, connection_id, arrays,
								lengthof(arrays), n);
	SPI_finish();
	return deleted;
}

/*
 * Marks the rows of records as archived for their reason and returns how many
 * rows were written.
 */
uint64
hs_target_mark(HsMapping *mapping, const pg_uuid_t *connection_id,
			   HsRecord *const *records, int n)
{
	Notes		notes = notes_of(records, n);
	const char *const *arrays[] = {notes.ids, notes.changed, notes.at,
								   notes.reasons, notes.survivors};
	uint64		marked;

	SPI_connect();
	marked = execute_on_arrays(&mapping->mark, connection_id, arrays,
							   lengthof(arrays), n);
	SPI_finish();
	return marked;
}

/*
 * The ids (char *) of our rows from `low` to `high`: of live rows, or of
 * archived ones that may come back.
 */
List *
hs_target_rows_in_range(HsMapping *mapping, const pg_uuid_t *connection_id,
						bool archived, const char *low, const char *high)
{
	bool		spanning = strlen(low) != strlen(high);
	HsStatement *statement = archived ? &mapping->archived_in_range[spanning]
		: &mapping->live_in_range[spanning];
	Oid			types[] = {UUIDOID, TEXTOID, TEXTOID};
	Datum		values[] = {PointerGetDatum(connection_id),
							CStringGetTextDatum(low),
							CStringGetTextDatum(high)};
	MemoryContext caller = CurrentMemoryContext;
	List	   *ids = NIL;
	uint64		rows;

	SPI_connect();
	prepare(statement, lengthof(types), types);
	rows = execute(statement, values);
	MemoryContextSwitchTo(caller);
	for (uint64 i = 0; i < rows; i++)
		ids = lappend(ids, result_text(i, 1));
	SPI_finish();
	return ids;
}

/*
 * Those of the records that others say were merged into them whose row does
 * not say so, as HsAbsence * without a kind.
 */
List *
hs_target_merged(HsMapping *mapping, const pg_uuid_t *connection_id,
				 const char *const *ids, const char *const *survivors, int n)
{
	const char *const *arrays[] = {ids, survivors};
	MemoryContext caller = CurrentMemoryContext;
	List	   *merged = NIL;
	uint64		rows;

	SPI_connect();
	rows = execute_on_arrays(&mapping->merged, connection_id, arrays,
							 lengthof(arrays), n);
	MemoryContextSwitchTo(caller);
	for (uint64 i = 0; i < rows; i++)
	{
		HsAbsence  *absence = palloc0(sizeof(HsAbsence));

		absence->record_id = result_text(i, 1);
		absence->merged_into = result_text(i, 2);
		merged = lappend(merged, absence);
	}
	SPI_finish();
	return merged;
}

/*
 * Those of the records (char *) whose row says that they are gone or merged
 * away.  NIL for a target that does not tell.
 */
List *
hs_target_buried(HsMapping *mapping, const pg_uuid_t *connection_id,
				 const char *const *ids, int n)
{
	const char *const *arrays[] = {ids};
	MemoryContext caller = CurrentMemoryContext;
	List	   *buried = NIL;
	uint64		rows;

	if (mapping->buried.sql == NULL)
		return NIL;
	SPI_connect();
	rows = execute_on_arrays(&mapping->buried, connection_id, arrays,
							 lengthof(arrays), n);
	MemoryContextSwitchTo(caller);
	for (uint64 i = 0; i < rows; i++)
		buried = lappend(buried, result_text(i, 1));
	SPI_finish();
	return buried;
}

/*
 * How many live rows of ours there are.
 */
double
hs_target_count(HsMapping *mapping, const pg_uuid_t *connection_id)
{
	bool		isnull;
	double		count;

	SPI_connect();
	execute_on_arrays(&mapping->count, connection_id, NULL, 0, 0);
	count = DatumGetFloat8(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	return count;
}
