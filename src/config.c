/*-------------------------------------------------------------------------
 *
 * config.c
 *	  Changes of the configuration: who may make them, and what survives a
 *	  dump.
 *
 * Whoever names a target table decides what a worker writes there as its
 * owner, so only members of the owner may.  Rows that came with the extension
 * are in no dump, since CREATE EXTENSION brings them; a changed one is, and
 * what was deleted is noted in sync_removals.  So a restored dump inserts
 * rows that are there already, which changes them, and removals, which delete
 * them again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "filter.h"
#include "mapping.h"
#include "sources.h"

PG_FUNCTION_INFO_V1(hubspot_sync_check_configuration);
PG_FUNCTION_INFO_V1(hubspot_sync_drop_fields);
PG_FUNCTION_INFO_V1(hubspot_sync_check_connection);
PG_FUNCTION_INFO_V1(hubspot_sync_check_source);
PG_FUNCTION_INFO_V1(hubspot_sync_restore_removal);
PG_FUNCTION_INFO_V1(hubspot_sync_map);

/* Our own statements are under way: their rows are as they should be. */
static bool writes_itself = false;

/* ------------------------------------------------------------------------
 * Triggers
 * ------------------------------------------------------------------------
 */

/*
 * Throws unless called as a BEFORE trigger for a row.  TRUNCATE, for which
 * there are no rows, would leave nothing noted.
 */
static TriggerData *
row_trigger(FunctionCallInfo fcinfo)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (CALLED_AS_TRIGGER(fcinfo) &&
		TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot truncate table \"%s\"",
						RelationGetRelationName(trigger->tg_relation)),
				 errhint("Use DELETE.")));
	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function must be called as a row trigger before the event")));
	return trigger;
}

/* The row that a trigger is to let through unchanged. */
static HeapTuple
given_row(const TriggerData *trigger)
{
	return TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? trigger->tg_newtuple
		: trigger->tg_trigtuple;
}

/* A column of a row as text, NULL for null or where there is no such column. */
static char *
row_value(const TriggerData *trigger, HeapTuple row, const char *column)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int			number = SPI_fnumber(desc, column);

	return number > 0 ? SPI_getvalue(row, desc, number) : NULL;
}

/* Whether a trigger is one of sync_types, not of sync_fields. */
static bool
is_about_types(const TriggerData *trigger)
{
	return SPI_fnumber(RelationGetDescr(trigger->tg_relation),
					   "target_table") != SPI_ERROR_NOATTRIBUTE;
}

/*
 * The sync type whose target a row of sync_types or sync_fields is about,
 * NULL if there is none.
 */
static HsSyncType *
configured_type(const TriggerData *trigger, HeapTuple row)
{
	HsSyncType *type;
	char	   *author;

	if (!is_about_types(trigger))
		return hs_catalog_sync_type(row_value(trigger, row, "sync_type"));
	if (hs_mapping_same_text(row_value(trigger, row, "source"), "progress"))
		return hs_catalog_sync_type("progress");
	type = palloc0(sizeof(HsSyncType));
	type->name = row_value(trigger, row, "sync_type");
	type->target_schema = row_value(trigger, row, "target_schema");
	type->target_table = row_value(trigger, row, "target_table");
	/* What a new row says of its author counts for nothing. */
	author = row_value(trigger, row, "configured_by");
	if (author != NULL && row == trigger->tg_trigtuple &&
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		type->configured_by = list_make1(author);
	return type->target_table ? type : NULL;
}

/* Throws unless the current user may decide about a row's target. */
static void
check_row(const TriggerData *trigger, HeapTuple row)
{
	HsSyncType *type = configured_type(trigger, row);

	if (type != NULL)
		hs_mapping_check_writer(type);
}

/* Throws unless a row's filters, if it has any, make sense. */
static void
check_filters(const TriggerData *trigger, HeapTuple row)
{
	char	   *filters = row_value(trigger, row, "filters");
	const char *problem;

	if (filters != NULL && hs_filter_parse(filters, &problem) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s", problem),
				 errhint("An example: {\"pipeline\": [\"default\", \"renewals\"], \"hubspot_owner_id\": {\"not\": null}}.")));
}

/*
 * The new row with its author, and no longer as it was shipped.  A superuser
 * who inserts a row may say whose it is, as a restored dump does.
 */
static HeapTuple
signed_row(const TriggerData *trigger, HeapTuple row)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int			numbers[2] = {SPI_fnumber(desc, "configured_by"),
							  SPI_fnumber(desc, "shipped")};
	const char *author = NULL;
	Datum		values[2];
	bool		nulls[2] = {false};
	NameData	who;

	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) && superuser())
		author = row_value(trigger, row, "configured_by");
	if (author == NULL)
		author = GetUserNameFromId(GetUserId(), false);
	namestrcpy(&who, author);
	values[0] = NameGetDatum(&who);
	values[1] = BoolGetDatum(false);
	return heap_modify_tuple_by_cols(row, desc, 2, numbers, values, nulls);
}

/* Makes a shipped row that is inserted again what it says; true if it was. */
static bool
replace_shipped(const TriggerData *trigger, HeapTuple row)
{
	bool		replaced;

	writes_itself = true;
	PG_TRY();
	{
		replaced = hs_catalog_replace_shipped(trigger->tg_relation, row);
	}
	PG_FINALLY();
	{
		writes_itself = false;
	}
	PG_END_TRY();
	return replaced;
}

/* Notes a deleted row of sync_types or sync_fields, or that it is back. */
static void
note_removal(const TriggerData *trigger, HeapTuple row, bool removed)
{
	const char *sync_type = row_value(trigger, row, "sync_type");
	const char *column = row_value(trigger, row, "column_name");

	writes_itself = true;
	PG_TRY();
	{
		if (removed)
			hs_catalog_note_removal(sync_type, column);
		else
			hs_catalog_forget_removal(sync_type, column);
	}
	PG_FINALLY();
	{
		writes_itself = false;
	}
	PG_END_TRY();
}

/*
 * The type that a new field names does not exist.  A dump restored by several
 * processes may bring the fields first, and is restored by a superuser.
 */
static void
check_homeless_field(const char *sync_type)
{
	if (sync_type == NULL)
		return;					/* refused as NOT NULL */
	ereport(superuser() ? NOTICE : ERROR,
			(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
			 errmsg("there is no sync type \"%s\" in table \"sync_types\"",
					sync_type),
			 errhint("Known sync types: %s.", hs_catalog_known_types())));
}

/*
 * A row of sync_types or sync_fields is inserted.  Where it takes a shipped
 * one's place, that one's target is the inserter's to decide about, too.
 */
static HeapTuple
configuration_inserted(const TriggerData *trigger)
{
	HeapTuple	row = signed_row(trigger, trigger->tg_trigtuple);
	HsSyncType *present =
		hs_catalog_sync_type(row_value(trigger, row, "sync_type"));

	if (present != NULL)
		hs_mapping_check_writer(present);
	else if (!is_about_types(trigger))
		check_homeless_field(row_value(trigger, row, "sync_type"));
	note_removal(trigger, row, false);
	/* Dumps are restored by superusers. */
	return superuser() && replace_shipped(trigger, row) ? NULL : row;
}

/*
 * The name of the type in a row of sync_types or sync_fields changes.  Runs,
 * checkpoints and failures know a type by its name, so that one stays.
 */
static void
check_renamed(const TriggerData *trigger)
{
	char	   *name = row_value(trigger, trigger->tg_newtuple, "sync_type");

	if (is_about_types(trigger))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("sync type \"%s\" cannot be renamed",
						row_value(trigger, trigger->tg_trigtuple, "sync_type")),
				 errhint("Insert a type with the new name, move the fields to it and delete this one.")));
	if (hs_catalog_sync_type(name) == NULL)
		check_homeless_field(name);
}

/* A row of sync_types or sync_fields is changed; a field may get another key. */
static HeapTuple
configuration_updated(const TriggerData *trigger)
{
	HeapTuple	before = trigger->tg_trigtuple;
	HeapTuple	after = trigger->tg_newtuple;
	bool		renamed = !hs_mapping_same_text(row_value(trigger, before, "sync_type"),
												row_value(trigger, after, "sync_type"));

	check_row(trigger, after);
	if (renamed)
		check_renamed(trigger);
	if (renamed ||
		!hs_mapping_same_text(row_value(trigger, before, "column_name"),
							  row_value(trigger, after, "column_name")))
	{
		note_removal(trigger, before, true);
		note_removal(trigger, after, false);
	}
	return signed_row(trigger, after);
}

/*
 * BEFORE trigger of sync_types and sync_fields: accepts a target table, old
 * or new, only from a member of its owner, and notes who wrote the row.
 */
Datum
hubspot_sync_check_configuration(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = row_trigger(fcinfo);

	if (writes_itself)
		return PointerGetDatum(given_row(trigger));
	check_row(trigger, trigger->tg_trigtuple);
	if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
	{
		note_removal(trigger, trigger->tg_trigtuple, true);
		return PointerGetDatum(trigger->tg_trigtuple);
	}
	check_filters(trigger, given_row(trigger));
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		return PointerGetDatum(configuration_inserted(trigger));
	return PointerGetDatum(configuration_updated(trigger));
}

/*
 * AFTER trigger of sync_types: deletes a deleted type's fields, which is
 * noted like any other removal.
 */
Datum
hubspot_sync_drop_fields(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function must be called as a row trigger after a deletion")));
	hs_catalog_drop_fields(row_value(trigger, trigger->tg_trigtuple,
									 "sync_type"),
						   NULL, 0);
	return PointerGetDatum(NULL);
}

/*
 * Throws if the connection that came with the extension is to go, or to get
 * another name: every installation has it, and schedules use it.
 */
static void
protect_default(const TriggerData *trigger)
{
	HeapTuple	row = trigger->tg_trigtuple;
	char	   *id = row_value(trigger, row, "connection_id");

	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ||
		strcmp(id, HS_DEFAULT_CONNECTION_ID) != 0)
		return;
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) &&
		hs_mapping_same_text(id, row_value(trigger, trigger->tg_newtuple, "connection_id")) &&
		hs_mapping_same_text(row_value(trigger, row, "name"),
							 row_value(trigger, trigger->tg_newtuple, "name")))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("connection \"%s\" can be neither deleted nor renamed",
					row_value(trigger, row, "name"))));
}

/*
 * BEFORE trigger of sync_connections: a changed row is no longer as it was
 * shipped, and a shipped one that is inserted again is changed.
 */
Datum
hubspot_sync_check_connection(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = row_trigger(fcinfo);
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int			number = SPI_fnumber(desc, "shipped");
	Datum		value = BoolGetDatum(false);
	bool		isnull = false;
	HeapTuple	row;

	if (writes_itself)
		return PointerGetDatum(given_row(trigger));
	protect_default(trigger);
	if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		return PointerGetDatum(trigger->tg_trigtuple);
	row = heap_modify_tuple_by_cols(given_row(trigger), desc, 1, &number,
									&value, &isnull);
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) && superuser() &&
		replace_shipped(trigger, row))
		return PointerGetDatum(NULL);
	return PointerGetDatum(row);
}

/* The schema of the students' table, NULL if nobody has said. */
static char *
users_schema(void)
{
	ListCell   *lc;

	foreach(lc, hs_catalog_progress_sources())
	{
		HsSourceRow *row = lfirst(lc);

		if (strcmp(row->source, "users") == 0)
			return row->schema;
	}
	return NULL;
}

/* Throws unless the current user may decide about a source's table. */
static void
check_source(const TriggerData *trigger, HeapTuple row)
{
	HsSyncType	type = {.name = "progress"};
	HsSyncType *users;
	char	   *source = row_value(trigger, row, "source");
	char	   *author = row_value(trigger, row, "configured_by");

	type.target_schema = row_value(trigger, row, "table_schema");
	type.target_table = row_value(trigger, row, "table_name");
	if (type.target_schema == NULL)
		type.target_schema = users_schema();
	if (type.target_table == NULL && source != NULL)
		type.target_table = psprintf("%s_%s", row_value(trigger, row, "level"),
									 strcmp(source, "level") == 0 ? "progress"
									 : "milestones");
	if (author != NULL && row == trigger->tg_trigtuple &&
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		type.configured_by = list_make1(author);
	if (type.target_schema != NULL && type.target_table != NULL)
		hs_mapping_check_writer(&type);
	/* A table that is not there yet is the owner of users' affair, too. */
	users = hs_catalog_sync_type("progress");
	if (users != NULL && source != NULL && strcmp(source, "users") != 0)
		hs_mapping_check_writer(users);
}

/* Throws if a row's columns make no sense. */
static void
check_source_columns(const TriggerData *trigger, HeapTuple row)
{
	char	   *source = row_value(trigger, row, "source");
	char	   *columns = row_value(trigger, row, "columns");
	const char *problem = NULL;

	if (source != NULL && columns != NULL)
		problem = hs_sources_column_problem(source, columns);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s", problem),
				 errhint("An example: {\"user_id\": \"student_id\", \"score\": null}.")));
}

/* Throws if a source that came with the extension is to go. */
static void
protect_source(const TriggerData *trigger)
{
	char	   *source = row_value(trigger, trigger->tg_trigtuple, "source");
	char	   *level = row_value(trigger, trigger->tg_trigtuple, "level");

	Assert(source != NULL && level != NULL);
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) || level[0] != '\0')
		return;
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) &&
		hs_mapping_same_text(source, row_value(trigger, trigger->tg_newtuple, "source")))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("source \"%s\" can be neither deleted nor renamed", source),
			 strcmp(source, "users") == 0 ? errhint("Change it instead.")
			 : errhint("Set its column enabled to false to leave it out.")));
}

/*
 * BEFORE trigger of progress_sources: accepts a table, old or new, only from a
 * member of its owner, and notes who wrote the row.
 */
Datum
hubspot_sync_check_source(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = row_trigger(fcinfo);
	HeapTuple	row;

	if (writes_itself)
		return PointerGetDatum(given_row(trigger));
	check_source(trigger, trigger->tg_trigtuple);
	protect_source(trigger);
	if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		return PointerGetDatum(trigger->tg_trigtuple);
	check_source(trigger, given_row(trigger));
	check_source_columns(trigger, given_row(trigger));
	row = signed_row(trigger, given_row(trigger));
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) && superuser() &&
		replace_shipped(trigger, row))
		return PointerGetDatum(NULL);
	return PointerGetDatum(row);
}

/*
 * BEFORE trigger of sync_removals: deletes what was removed, if the extension
 * has brought it back.
 */
Datum
hubspot_sync_restore_removal(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = row_trigger(fcinfo);
	HeapTuple	row = trigger->tg_trigtuple;

	if (writes_itself)
		return PointerGetDatum(row);
	writes_itself = true;
	PG_TRY();
	{
		hs_catalog_remove_shipped(row_value(trigger, row, "sync_type"),
								  row_value(trigger, row, "column_name"));
	}
	PG_FINALLY();
	{
		writes_itself = false;
	}
	PG_END_TRY();
	return PointerGetDatum(row);
}

/* ------------------------------------------------------------------------
 * map_hubspot_sync()
 * ------------------------------------------------------------------------
 */

/* A mapping in the making, and the rows that explain it. */
typedef struct Map
{
	HsSyncType *type;
	Oid			relation;
	List	   *dropped;		/* of char *: columns of fields left out */
	ReturnSetInfo *rsinfo;
} Map;

/* Adds a row to the explanation. */
static void
explain(const Map *map, const char *property, const char *column,
		const char *remark)
{
	Datum		values[3];
	bool		nulls[3] = {property == NULL, column == NULL, remark == NULL};

	values[0] = property ? CStringGetTextDatum(property) : (Datum) 0;
	values[1] = column ? CStringGetTextDatum(column) : (Datum) 0;
	values[2] = remark ? CStringGetTextDatum(remark) : (Datum) 0;
	tuplestore_putvalues(map->rsinfo->setResult, map->rsinfo->setDesc, values,
						 nulls);
}

/* The elements of a text array as a list of char *; throws for nulls. */
static List *
names_in_array(ArrayType *array)
{
	List	   *names = NIL;
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements,
					  &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("key_columns must not contain nulls")));
		names = lappend(names, TextDatumGetCString(elements[i]));
	}
	return names;
}

/* Leaves out the fields that a function picks. */
static void
drop_fields(Map *map, bool (*picks)(const HsField *field, const void *arg),
			const void *arg)
{
	ListCell   *lc;

	foreach(lc, map->type->fields)
	{
		HsField    *field = lfirst(lc);

		if (!picks(field, arg))
			continue;
		map->dropped = lappend(map->dropped, field->column);
		map->type->fields = foreach_delete_current(map->type->fields, lc);
	}
}

static bool
is_of_property(const HsField *field, const void *arg)
{
	return field->property != NULL && strcmp(field->property, arg) == 0 &&
		strcmp(field->transform, "value") == 0;
}

static bool
is_of_column(const HsField *field, const void *arg)
{
	return strcmp(field->column, arg) == 0;
}

/* Sends a property to a column; NULL: nowhere. */
static void
map_property(Map *map, const char *property, const char *column)
{
	HsField    *field;
	ListCell   *lc;

	drop_fields(map, is_of_property, property);
	if (column == NULL)
	{
		explain(map, property, NULL, "not stored, as field_map says");
		return;
	}
	foreach(lc, map->type->fields)
	{
		const HsField *other = lfirst(lc);

		if (is_of_column(other, column) && other->property != NULL)
			explain(map, other->property, NULL,
					psprintf("not stored: column \"%s\" is for property \"%s\" now",
							 column, property));
	}
	drop_fields(map, is_of_column, column);
	field = palloc0(sizeof(HsField));
	field->property = pstrdup(property);
	field->column = pstrdup(column);
	field->transform = "value";
	map->type->fields = lappend(map->type->fields, field);
}

/* Applies field_map: an object of column names, or null, by property. */
static void
apply_field_map(Map *map, const char *text)
{
	HsJsonParse parse = hs_json_parse(text, strlen(text));
	const char **names;
	int			n = hs_json_names(parse.root, &names);

	if (hs_json_type(parse.root) != HS_JSON_OBJECT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("field_map must be a JSON object"),
				 errhint("An example: {\"firstname\": \"first_name\", \"fax\": null}.")));
	for (int i = 0; i < n; i++)
	{
		const HsJson *column = hs_json_member(parse.root, names[i]);

		if (!hs_filter_is_property_name(names[i]))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"%s\" in field_map cannot be a property's name",
							names[i])));
		if (hs_json_type(column) != HS_JSON_STRING &&
			hs_json_type(column) != HS_JSON_NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("field_map must give \"%s\" the name of a column, or null",
							names[i])));
		for (int other = 0; other < i; other++)
		{
			const char *taken = hs_json_text(hs_json_member(parse.root,
															names[other]));

			if (hs_mapping_same_text(taken, hs_json_text(column)) && taken != NULL)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("field_map gives column \"%s\" to two properties, \"%s\" and \"%s\"",
								taken, names[other], names[i])));
		}
		map_property(map, names[i], hs_json_text(column));
	}
}

/* Leaves out the fields that neither field_map nor the table has a place for. */
static void
drop_homeless_fields(Map *map, const char *field_map)
{
	HsJsonParse parse = {0};
	ListCell   *lc;

	if (field_map != NULL)
		parse = hs_json_parse(field_map, strlen(field_map));
	foreach(lc, map->type->fields)
	{
		HsField    *field = lfirst(lc);
		bool		asked_for = field->property != NULL &&
			hs_json_has(parse.root, field->property);

		if (asked_for ||
			get_attnum(map->relation, field->column) != InvalidAttrNumber)
			continue;
		explain(map, field->property, NULL,
				psprintf("not stored: the table has no column \"%s\"; name another, or this one once it is there, in field_map",
						 field->column));
		map->dropped = lappend(map->dropped, field->column);
		map->type->fields = foreach_delete_current(map->type->fields, lc);
	}
}

/* Whether the table has a column of that name and type. */
static bool
has_typed_column(const Map *map, const char *name, Oid type)
{
	AttrNumber	attno = get_attnum(map->relation, name);

	return attno > 0 && get_atttype(map->relation, attno) == type;
}

/*
 * Decides what happens to rows of deleted records.  A table that has no
 * column to mark them in keeps them, unless somebody says otherwise.
 */
static void
choose_policy(Map *map, const char *policy)
{
	HsSyncType *type = map->type;
	bool		can_mark = has_typed_column(map, "archived", BOOLOID);

	if (policy != NULL && strcmp(policy, "mark") != 0 &&
		strcmp(policy, "delete") != 0 && strcmp(policy, "ignore") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown delete policy \"%s\"", policy),
				 errhint("Known policies: mark, delete, ignore.")));
	if (policy != NULL)
		type->delete_policy = pstrdup(policy);
	else if (can_mark && strcmp(type->delete_policy, "ignore") == 0)
		explain(map, NULL, NULL,
				"delete_policy stays ignore: rows of deleted records stay as they are; mark is possible");
	else if (strcmp(type->delete_policy, "mark") == 0 && !can_mark)
	{
		type->delete_policy = "ignore";
		explain(map, NULL, NULL,
				"delete_policy is ignore: the table has no column \"archived boolean\", so rows of deleted records stay as they are");
	}
}

/* What a deal's status needs of its column's type, NULL if it has it. */
static const char *
lacking_label(Oid type)
{
	static const char *const labels[] = {"open", "won", "lost"};

	if (get_typtype(type) != TYPTYPE_ENUM)
		return NULL;
	for (size_t i = 0; i < lengthof(labels); i++)
	{
		if (!SearchSysCacheExists2(ENUMTYPOIDNAME, ObjectIdGetDatum(type),
								   CStringGetDatum(labels[i])))
			return psprintf("the column's type has no label \"%s\"; such deals go to sync_errors",
							labels[i]);
	}
	return NULL;
}

/* What there is to say about a column of the mapping. */
static const char *
column_remark(const HsMapping *mapping, const HsColumn *column)
{
	switch (column->kind)
	{
		case HS_COLUMN_ID:
			return "key: HubSpot's id of the record";
		case HS_COLUMN_DEAL_STATUS:
			return lacking_label(column->type)
				? lacking_label(column->type) : "open, won or lost, by the stage";
		case HS_COLUMN_OWNER_NAME:
			return "first and last name, else the e-mail";
		case HS_COLUMN_CONSTANT:
			return psprintf("always \"%s\"%s", column->argument,
							column->insert_only ? ", set when the row is created" : "");
		case HS_COLUMN_NOW:
			return "when the synchronisation last changed the row";
		case HS_COLUMN_VALUE:
			if (column->category == TYPCATEGORY_STRING)
				return column->insert_only ? "set when the row is created" : NULL;
			return psprintf("values that are no %s go to sync_errors",
							format_type_be(column->type));
		default:
			return "kept by the synchronisation";
	}
}

/* Explains where everything goes. */
static void
explain_mapping(const Map *map, const HsMapping *mapping)
{
	for (int i = 0; i < mapping->ncolumns; i++)
	{
		const HsColumn *column = &mapping->columns[i];
		const char *property = column->kind == HS_COLUMN_ID
			? "hs_object_id" : column->property;

		explain(map, property, column->name, column_remark(mapping, column));
	}
	if (mapping->keeps_rows)
		explain(map, NULL, NULL,
				"the table lacks connection_id, archived, hubspot_updated_at or synced_at; these are kept in sync_rows");
}

/* Whether the mapping fills a column. */
static bool
is_filled(const HsMapping *mapping, const char *name)
{
	for (int i = 0; i < mapping->ncolumns; i++)
	{
		if (strcmp(mapping->columns[i].name, name) == 0)
			return true;
	}
	return false;
}

/* Warns about columns that a new row would have to have a value for. */
static void
explain_required(const Map *map, const HsMapping *mapping)
{
	Relation	rel = table_open(map->relation, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || !att->attnotnull || att->atthasdef ||
			att->attidentity != '\0' ||
			is_filled(mapping, NameStr(att->attname)))
			continue;
		explain(map, NULL, NameStr(att->attname),
				"the column must not be null, has no default, and nothing fills it: new records will go to sync_errors");
	}
	table_close(rel, AccessShareLock);
}

/* Writes the mapping down in the caller's name. */
static void
save_mapping(const Map *map)
{
	const char *author = GetUserNameFromId(GetUserId(), false);
	ListCell   *lc;

	writes_itself = true;
	PG_TRY();
	{
		hs_catalog_save_target(map->type, author);
		hs_catalog_save_fields(map->type, author);
		foreach(lc, map->dropped)
			hs_catalog_note_removal(map->type->name, lfirst(lc));
		foreach(lc, map->type->fields)
			hs_catalog_forget_removal(map->type->name,
									  ((HsField *) lfirst(lc))->column);
	}
	PG_FINALLY();
	{
		writes_itself = false;
	}
	PG_END_TRY();
}

/* Reads the type to map, or throws with the list of those there are. */
static HsSyncType *
type_to_map(FunctionCallInfo fcinfo)
{
	HsSyncType *type;
	char	   *name;

	for (int i = 0; i < 3; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("sync type, target and key columns must not be null")));
	}
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	type = hs_catalog_sync_type(name);
	if (type == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("unknown sync type \"%s\"", name),
				 errhint("Known sync types: %s. For another object, insert a row into sync_types first.",
						 hs_catalog_known_types())));
	if (strcmp(type->source, "progress") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("sync type \"%s\" has no target table", name),
				 errhint("Say in progress_sources where the students' progress is.")));
	return type;
}

/* Points the type at its new target. */
static void
retarget(Map *map, Oid relation, List *key_columns)
{
	HsSyncType *type = map->type;
	char	   *name = get_rel_name(relation);
	HsExtension extension;

	if (!hs_catalog_find_extension(&extension))
		elog(ERROR, "extension is not installed");
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("there is no table with oid %u", relation)));
	hs_mapping_check_writer(type);
	type->target_schema = NULL; /* the extension's own, whatever its name */
	if (get_rel_namespace(relation) != extension.schema)
		type->target_schema =
			get_namespace_name(get_rel_namespace(relation));
	type->target_table = name;
	type->key_columns = key_columns;
	map->relation = hs_mapping_target(type);
	hs_mapping_check_writer(type);
}

/*
 * map_hubspot_sync(sync_type, target, key_columns, field_map, delete_policy)
 * -> (property, column_name, remark)
 */
Datum
hubspot_sync_map(PG_FUNCTION_ARGS)
{
	Map			map = {.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo};
	char	   *field_map = PG_ARGISNULL(3) ? NULL
		: JsonbToCString(NULL, &PG_GETARG_JSONB_P(3)->root,
						 VARSIZE(PG_GETARG_JSONB_P(3)));
	HsMapping  *mapping;

	InitMaterializedSRF(fcinfo, 0);
	map.type = type_to_map(fcinfo);
	retarget(&map, PG_GETARG_OID(1),
			 names_in_array(PG_GETARG_ARRAYTYPE_P(2)));
	choose_policy(&map, PG_ARGISNULL(4) ? NULL
				  : text_to_cstring(PG_GETARG_TEXT_PP(4)));
	if (field_map != NULL)
		apply_field_map(&map, field_map);
	drop_homeless_fields(&map, field_map);
	map.type->configured_by = NIL;
	mapping = hs_mapping_build(map.type);
	explain_mapping(&map, mapping);
	explain_required(&map, mapping);
	save_mapping(&map);
	return (Datum) 0;
}
