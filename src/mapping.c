/*-------------------------------------------------------------------------
 *
 * mapping.c
 *	  From HubSpot's records to rows of a target table.
 *
 * A mapping is built from configuration and the target's definition when a
 * run starts: which column gets what.  target.c makes the statements of it
 * that read and write the table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "compat.h"
#include "mapping.h"
#include "target.h"

/* Digits of a 64-bit number. */
#define MAX_ID_DIGITS 19

/* What fingerprints call the kinds of columns, in whatever order they are. */
static const char *const kind_names[HS_COLUMN_KINDS] = {
	[HS_COLUMN_ID] = "id",
	[HS_COLUMN_VALUE] = "value",
	[HS_COLUMN_DEAL_STATUS] = "deal_status",
	[HS_COLUMN_OWNER_NAME] = "owner_name",
	[HS_COLUMN_CONSTANT] = "constant",
	[HS_COLUMN_PROPERTIES] = "properties",
	[HS_COLUMN_ARCHIVED] = "archived",
	[HS_COLUMN_ARCHIVED_AT] = "archived_at",
	[HS_COLUMN_REASON] = "archived_reason",
	[HS_COLUMN_MERGED_INTO] = "merged_into",
	[HS_COLUMN_UPDATED_AT] = "hubspot_updated_at",
	[HS_COLUMN_NOW] = "synced_at",
	[HS_COLUMN_CONNECTION] = "connection_id"
};

/* Columns that the sync fills wherever a target has them. */
static const struct
{
	const char *name;
	Oid			type;
	HsColumnKind kind;
} own_columns[] = {
	{"connection_id", UUIDOID, HS_COLUMN_CONNECTION},
	{"properties", JSONBOID, HS_COLUMN_PROPERTIES},
	{"archived", BOOLOID, HS_COLUMN_ARCHIVED},
	{"archived_at", TIMESTAMPTZOID, HS_COLUMN_ARCHIVED_AT},
	{"archived_reason", TEXTOID, HS_COLUMN_REASON},
	{"merged_into", TEXTOID, HS_COLUMN_MERGED_INTO},
	{"hubspot_updated_at", TIMESTAMPTZOID, HS_COLUMN_UPDATED_AT},
	{"synced_at", TIMESTAMPTZOID, HS_COLUMN_NOW},
};

static const struct
{
	const char *name;
	HsColumnKind kind;
} transforms[] = {
	{"value", HS_COLUMN_VALUE},
	{"deal_status", HS_COLUMN_DEAL_STATUS},
	{"owner_name", HS_COLUMN_OWNER_NAME},
	{"constant", HS_COLUMN_CONSTANT},
	{"now", HS_COLUMN_NOW},
};

/* ------------------------------------------------------------------------
 * The target
 * ------------------------------------------------------------------------
 */

/* The relation that a type names as its target, InvalidOid for none. */
static Oid
find_target(const HsSyncType *type)
{
	HsExtension extension;
	Oid			schema = InvalidOid;

	if (type->target_schema != NULL)
		schema = get_namespace_oid(type->target_schema, true);
	else if (hs_catalog_find_extension(&extension))
		schema = extension.schema;
	return OidIsValid(schema) ?
		get_relname_relid(type->target_table, schema) : InvalidOid;
}

/*
 * Finds the target table of a sync type.  Throws 42P01 if there is none,
 * 42809 if it is no table.
 */
Oid
hs_mapping_target(const HsSyncType *type)
{
	Oid			relid = find_target(type);
	char		relkind;

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("target table \"%s\" of sync type \"%s\" does not exist",
						type->target_table, type->name),
				 errhint("Create the table or change target_schema and target_table in sync_types.")));
	relkind = get_rel_relkind(relid);
	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("target \"%s\" of sync type \"%s\" is not a table",
						type->target_table, type->name)));
	if (get_rel_persistence(relid) == RELPERSISTENCE_TEMP ||
		IsCatalogNamespace(get_rel_namespace(relid)))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("target \"%s\" of sync type \"%s\" is a temporary or system table",
						type->target_table, type->name)));
	return relid;
}

/*
 * Makes sure that everybody who configured the type may decide what happens
 * to a table of this owner.  Throws 42501.
 */
void
hs_mapping_check_roles(const HsSyncType *type, Oid owner)
{
	ListCell   *lc;

	foreach(lc, type->configured_by)
	{
		const char *name = lfirst(lc);
		Oid			role = get_role_oid(name, true);

		if (!OidIsValid(role) || !hs_may_act_as(role, owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("role \"%s\" may not configure sync type \"%s\"",
							name, type->name),
					 errdetail("The target table belongs to \"%s\", of which that role is no member.",
							   GetUserNameFromId(owner, true)),
					 errhint("Let a member of the owner write the type's rows of sync_types, sync_fields or progress_sources again.")));
	}
}

/*
 * Makes sure that the current user may act as everybody who has configured a
 * type whose target is not there: it may be about to be created anew.
 */
static void
check_authors(const HsSyncType *type)
{
	ListCell   *lc;

	foreach(lc, type->configured_by)
	{
		Oid			role = get_role_oid(lfirst(lc), true);

		if (!superuser() &&
			(!OidIsValid(role) || !hs_may_act_as(GetUserId(), role)))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("must be a member of role \"%s\", which has configured sync type \"%s\"",
							(char *) lfirst(lc), type->name),
					 errdetail("Its target table \"%s\" does not exist at the moment.",
							   type->target_table)));
	}
}

/*
 * Makes sure that the current user may name this target.  One that does not
 * exist yet is accepted: runs check again.  Throws 42501.
 */
void
hs_mapping_check_writer(const HsSyncType *type)
{
	Oid			relid = find_target(type);
	Oid			owner;

	if (!OidIsValid(relid))
	{
		check_authors(type);
		return;
	}
	owner = hs_catalog_table_owner(relid);
	if (!hs_may_act_as(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be a member of the role that owns table \"%s\"",
						type->target_table),
				 errdetail("Runs of sync type \"%s\" work on it as its owner.",
						   type->name)));
}

/* Whether an index can serve as arbiter for exactly these columns. */
static bool
index_fits(Oid index, Relation rel, List *columns)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	Form_pg_index form;
	bool		fits;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_index) GETSTRUCT(tuple);
	fits = form->indisunique && form->indimmediate && form->indisvalid &&
		form->indnkeyatts == list_length(columns) &&
		heap_attisnull(tuple, Anum_pg_index_indpred, NULL) &&
		heap_attisnull(tuple, Anum_pg_index_indexprs, NULL);
	for (int i = 0; fits && i < form->indnkeyatts; i++)
	{
		AttrNumber	attno = form->indkey.values[i];
		bool		found = false;
		ListCell   *lc;

		foreach(lc, columns)
			found |= get_attnum(RelationGetRelid(rel), lfirst(lc)) == attno;
		fits = found;
	}
	ReleaseSysCache(tuple);
	return fits;
}

/*
 * Checks that the key columns have a unique index, which ON CONFLICT needs.
 */
static void
check_key(const HsSyncType *type, Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;

	foreach(lc, indexes)
	{
		if (index_fits(lfirst_oid(lc), rel, type->key_columns))
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
			 errmsg("target table \"%s\" of sync type \"%s\" has no unique index on its key columns",
					type->target_table, type->name),
			 errhint("Create a unique index, not deferrable and without a predicate, on exactly the columns in key_columns.")));
}

/* ------------------------------------------------------------------------
 * Columns
 * ------------------------------------------------------------------------
 */

/*
 * Adds a column of the target to the mapping.
 */
static HsColumn *
add_column(HsMapping *mapping, const HsSyncType *type, Relation rel,
		   const char *name, HsColumnKind kind)
{
	AttrNumber	attno = get_attnum(RelationGetRelid(rel), name);
	HsColumn   *column = &mapping->columns[mapping->ncolumns++];
	Form_pg_attribute att;
	bool		preferred;

	if (attno <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("target table \"%s\" of sync type \"%s\" has no column \"%s\"",
						type->target_table, type->name, name),
				 errhint("Correct key_columns in sync_types or column_name in sync_fields.")));
	att = TupleDescAttr(RelationGetDescr(rel), attno - 1);
	if (att->attgenerated != '\0' || att->attidentity == 'a')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("column \"%s\" of target table \"%s\" is generated and cannot be written",
						name, type->target_table)));
	column->kind = kind;
	column->name = pstrdup(name);
	column->type = att->atttypid;
	column->typmod = att->atttypmod;
	get_type_category_preferred(column->type, &column->category, &preferred);
	return column;
}

/* Whether the mapping has a column of that name already. */
static bool
has_column(const HsMapping *mapping, const char *name)
{
	for (int i = 0; i < mapping->ncolumns; i++)
	{
		if (strcmp(mapping->columns[i].name, name) == 0)
			return true;
	}
	return false;
}

/*
 * Adds the key: one column for the record's id, and connection_id where the
 * index has it.
 */
static void
add_key_columns(HsMapping *mapping, const HsSyncType *type, Relation rel)
{
	ListCell   *lc;
	int			ids = 0;

	foreach(lc, type->key_columns)
	{
		bool		connection = strcmp(lfirst(lc), "connection_id") == 0;
		HsColumn   *column = add_column(mapping, type, rel, lfirst(lc),
										connection ? HS_COLUMN_CONNECTION
										: HS_COLUMN_ID);

		column->is_key = true;
		mapping->has_connection |= connection;
		ids += connection ? 0 : 1;
	}
	if (ids != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key_columns of sync type \"%s\" must name one column for the record's id",
						type->name),
				 errdetail("Beside it there may be connection_id.")));
}

/* Adds the configured fields. */
static void
add_fields(HsMapping *mapping, const HsSyncType *type, Relation rel)
{
	ListCell   *lc;

	foreach(lc, type->fields)
	{
		HsField    *field = lfirst(lc);
		HsColumn   *column;
		size_t		i = 0;

		while (strcmp(transforms[i].name, field->transform) != 0)
		{
			if (++i == lengthof(transforms))
				elog(ERROR, "unknown transform \"%s\"", field->transform);
		}
		if (has_column(mapping, field->column))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("column \"%s\" of sync type \"%s\" is a key column and cannot be a field too",
							field->column, type->name)));
		column = add_column(mapping, type, rel, field->column,
							transforms[i].kind);
		column->property = field->property;
		column->argument = field->argument;
		column->insert_only = field->insert_only;
		mapping->needs_stages |= column->kind == HS_COLUMN_DEAL_STATUS;
	}
}

/* Adds the columns that the sync fills by itself, where their types fit. */
static void
add_own_columns(HsMapping *mapping, const HsSyncType *type, Relation rel)
{
	for (size_t i = 0; i < lengthof(own_columns); i++)
	{
		AttrNumber	attno = get_attnum(RelationGetRelid(rel),
									   own_columns[i].name);

		if (attno <= 0 || has_column(mapping, own_columns[i].name) ||
			get_atttype(RelationGetRelid(rel), attno) != own_columns[i].type)
			continue;
		add_column(mapping, type, rel, own_columns[i].name,
				   own_columns[i].kind);
		mapping->owns[own_columns[i].kind] = true;
	}
	mapping->has_connection |= mapping->owns[HS_COLUMN_CONNECTION];
	mapping->keeps_rows = !(mapping->has_connection &&
							mapping->owns[HS_COLUMN_ARCHIVED] &&
							mapping->owns[HS_COLUMN_UPDATED_AT] &&
							mapping->owns[HS_COLUMN_NOW]);
}

static int
compare_columns(const void *a, const void *b)
{
	return (int) ((const HsColumn *) a)->kind - (int) ((const HsColumn *) b)->kind;
}

static int
compare_names(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

/* A list of names sorted and without duplicates, in copies. */
static List *
unique_names(List *names)
{
	List	   *unique = NIL;
	ListCell   *lc;

	list_sort(names, compare_names);
	foreach(lc, names)
	{
		if (unique == NIL || strcmp(llast(unique), lfirst(lc)) != 0)
			unique = lappend(unique, pstrdup(lfirst(lc)));
	}
	return unique;
}

/*
 * The properties to ask for: those of fields, those configured beside, those
 * that filters look at, and what tells merges and owners.
 */
static List *
wanted_properties(const HsMapping *mapping, const HsSyncType *type)
{
	List	   *all = list_copy(type->properties);

	for (int i = 0; i < mapping->ncolumns; i++)
	{
		if (mapping->columns[i].property != NULL)
			all = lappend(all, unconstify(char *, mapping->columns[i].property));
	}
	if (mapping->filter != NULL)
		all = list_concat(all, hs_filter_properties(mapping->filter));
	if (!mapping->is_owners)
		all = lappend(all, HS_MERGED_IDS_PROPERTY);
	if (mapping->keeps_owner_history)
		all = lappend(all, HS_OWNER_PROPERTY);
	return unique_names(all);
}

/*
 * Adds properties to those to ask for, in the current memory context.
 */
void
hs_mapping_add_properties(HsMapping *mapping, List *names)
{
	mapping->properties = unique_names(list_concat_copy(mapping->properties,
														names));
}

/* Parses the type's filters.  Throws 22023 if they make no sense. */
static HsFilter *
read_filters(const HsSyncType *type)
{
	const char *problem;
	HsFilter   *filter;

	if (type->filters == NULL)
		return NULL;
	filter = hs_filter_parse(type->filters, &problem);
	if (filter == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("sync type \"%s\" has invalid filters: %s",
						type->name, problem),
				 errhint("An example: {\"pipeline\": [\"default\", \"renewals\"], \"hubspot_owner_id\": {\"not\": null}}.")));
	return filter;
}

/*
 * Fingerprint of all that decides what a run asks for and stores.  Another
 * version of the library, and a restored database, have to come to the same:
 * it costs a full run where they do not.
 */
static char *
build_fingerprint(const HsMapping *mapping, const HsSyncType *type)
{
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	appendStringInfo(&text, "%s|%s|%s|%s|%s|%s|%d", type->source,
					 type->object_type,
					 type->modified_property ? type->modified_property : "",
					 type->delete_policy, mapping->target,
					 type->filters ? type->filters : "",
					 type->all_properties);
	for (int i = 0; i < mapping->ncolumns; i++)
	{
		const HsColumn *column = &mapping->columns[i];

		appendStringInfo(&text, "|%s %s %s %s %s %d %d %d", column->name,
						 kind_names[column->kind],
						 column->property ? column->property : "",
						 column->argument ? column->argument : "",
						 format_type_be_qualified(column->type),
						 column->typmod, column->is_key,
						 column->insert_only);
	}
	foreach(lc, mapping->properties)
		appendStringInfo(&text, "|%s", (char *) lfirst(lc));
	return psprintf("%016llx",
					(unsigned long long) hash_bytes_extended((unsigned char *) text.data,
															 text.len, 0));
}

/*
 * Builds the mapping of a sync type in the current memory context, which must
 * outlive its use.  Needs a transaction.  Throws where configuration and
 * target do not fit together.
 */
HsMapping *
hs_mapping_build(const HsSyncType *type)
{
	HsMapping  *mapping = palloc0(sizeof(HsMapping));
	Relation	rel;

	mapping->relation = hs_mapping_target(type);
	mapping->is_owners = strcmp(type->source, "owners") == 0;
	rel = table_open(mapping->relation, AccessShareLock);
	mapping->only = rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE
		? "" : "ONLY ";
	mapping->schema = RelationGetNamespace(rel);
	mapping->name = pstrdup(RelationGetRelationName(rel));
	mapping->target =
		quote_qualified_identifier(get_namespace_name(mapping->schema),
								   mapping->name);
	mapping->columns = palloc0(sizeof(HsColumn) *
							   (list_length(type->key_columns) +
								list_length(type->fields) +
								lengthof(own_columns)));
	check_key(type, rel);
	add_key_columns(mapping, type, rel);
	add_fields(mapping, type, rel);
	add_own_columns(mapping, type, rel);
	table_close(rel, AccessShareLock);

	if (strcmp(type->delete_policy, "mark") == 0 &&
		!mapping->owns[HS_COLUMN_ARCHIVED])
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("target table \"%s\" of sync type \"%s\" has no column to mark archived records in",
						type->target_table, type->name),
				 errhint("Add a column \"archived boolean\", or set delete_policy to 'ignore' or 'delete'.")));

	qsort(mapping->columns, mapping->ncolumns, sizeof(HsColumn),
		  compare_columns);
	while (mapping->ninputs < mapping->ncolumns &&
		   mapping->columns[mapping->ninputs].kind < HS_COLUMN_NOW)
		mapping->ninputs++;
	mapping->filter = read_filters(type);
	mapping->all_properties = type->all_properties;
	mapping->order = hs_json_new_order();
	mapping->keeps_owner_history = !mapping->is_owners &&
		strcmp(type->name, HS_CONTACTS_TYPE) == 0;
	mapping->properties = wanted_properties(mapping, type);
	hs_target_build(mapping);
	mapping->fingerprint = build_fingerprint(mapping, type);
	return mapping;
}

/* Throws unless a relation is ours to write to. */
static void
check_owner(Oid relation)
{
	if (hs_catalog_table_owner(relation) != GetUserId())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has changed its owner or has a part of another owner",
						get_rel_name(relation)),
				 errdetail("A run writes as the owner of its target table, \"%s\".",
						   GetUserNameFromId(GetUserId(), true)),
				 errhint("Request the run again.")));
}

/*
 * Locks the target against changes until the transaction ends and makes sure
 * that it still is the table the mapping was built for and all ours: what
 * hangs on it runs as us.
 */
void
hs_mapping_check_target(const HsMapping *mapping)
{
	ListCell   *lc;

	LockRelationOid(mapping->relation, RowExclusiveLock);
	if (get_relname_relid(mapping->name, mapping->schema) != mapping->relation ||
		strcmp(mapping->target,
			   quote_qualified_identifier(get_namespace_name(mapping->schema),
										  mapping->name)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the target table %s was replaced while the run was under way",
						mapping->target),
				 errhint("Request the run again.")));
	check_owner(mapping->relation);
	if (get_rel_relkind(mapping->relation) != RELKIND_PARTITIONED_TABLE)
		return;
	foreach(lc, find_all_inheritors(mapping->relation, RowExclusiveLock, NULL))
		check_owner(lfirst_oid(lc));
}

/* ------------------------------------------------------------------------
 * Records
 * ------------------------------------------------------------------------
 */

/* Ids are 64-bit numbers (facts section 4), each in one spelling. */
static bool
is_valid_id(const char *text, const HsJson *value, int64 *number)
{
	size_t		len = strlen(text);

	return len <= MAX_ID_DIGITS && strspn(text, "0123456789") == len &&
		(text[0] != '0' || len == 1) && hs_json_int64(value, number);
}

/* A member that is an instant, 0 if there is none or it is no instant. */
static TimestampTz
read_time(const HsJson *json, const char *name)
{
	TimestampTz t;

	return hs_json_timestamp(hs_json_member(json, name), &t) ? t : 0;
}

/*
 * Reads a record's id and dates.  Returns false with a dead letter's category
 * in `problem` if it has no usable id.  Does not throw.
 */
bool
hs_mapping_read_record(const HsMapping *mapping, const HsJson *json,
					   HsRecord *record, const char **problem)
{
	const HsJson *id = hs_json_member(json, "id");

	memset(record, 0, sizeof(HsRecord));
	record->json = json;
	record->properties = mapping->is_owners ? json
		: hs_json_member(json, "properties");
	record->id = hs_json_text(id);
	if (record->id == NULL || record->id[0] == '\0')
	{
		*problem = "no_id";
		return false;
	}
	if (!is_valid_id(record->id, id, &record->id_number))
	{
		*problem = "invalid_id";
		return false;
	}
	record->updated_at = read_time(json, "updatedAt");
	record->archived_at = read_time(json, "archivedAt");
	(void) hs_json_bool(hs_json_member(json, "archived"), &record->archived);
	return true;
}

/*
 * Whether two texts, NULL for null, are the same.
 */
bool
hs_mapping_same_text(const char *a, const char *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return strcmp(a, b) == 0;
}

/*
 * An instant as text that PostgreSQL reads, in the current memory context;
 * NULL for 0, which stands for none.
 */
char *
hs_mapping_time_text(TimestampTz t)
{
	return t == 0 ? NULL : pstrdup(timestamptz_to_str(t));
}

/*
 * Whether a text can be a value of HubSpot's for such a column.  PostgreSQL
 * would also read words like "today", "infinity" and "NaN", which no record
 * can have meant.
 */
static bool
is_plausible(const HsColumn *column, const char *text)
{
	if (text == NULL || column->kind != HS_COLUMN_VALUE)
		return true;
	if (column->category == TYPCATEGORY_DATETIME)
		return isdigit((unsigned char) text[0]);
	if (column->category == TYPCATEGORY_NUMERIC)
		return text[strspn(text, "+-.0123456789eE")] == '\0';
	return true;
}

/*
 * A property's value as text for a column of this type.  HubSpot clears
 * values with "", which only text can hold; dates may come as milliseconds
 * (facts section 6).
 */
static char *
value_text(const HsColumn *column, const HsJson *value)
{
	const char *text = hs_json_text(value);
	TimestampTz t;

	if (text == NULL)
	{
		StringInfoData nested;

		if (hs_json_type(value) == HS_JSON_NULL)
			return NULL;
		initStringInfo(&nested);
		hs_json_append(&nested, value);
		return nested.data;
	}
	if (column->category == TYPCATEGORY_STRING)
		return unconstify(char *, text);
	if (text[0] == '\0')
		return NULL;
	if (column->category == TYPCATEGORY_DATETIME &&
		strspn(text, "0123456789") == strlen(text) && strlen(text) > 9 &&
		hs_json_timestamp(value, &t))
		return hs_mapping_time_text(t);
	return unconstify(char *, text);
}

/* First and last name, the e-mail where there is none. */
static char *
owner_name(const HsJson *properties)
{
	const char *first = hs_json_text(hs_json_member(properties, "firstName"));
	const char *last = hs_json_text(hs_json_member(properties, "lastName"));
	char	   *name = psprintf("%s %s", first ? first : "", last ? last : "");
	size_t		len;

	name += strspn(name, " ");
	len = strlen(name);
	while (len > 0 && name[len - 1] == ' ')
		name[--len] = '\0';
	if (len > 0)
		return name;
	return unconstify(char *, hs_json_text(hs_json_member(properties, "email")));
}

/* The status of a stage, NULL if it is known that no pipeline has it. */
static const char *
stage_status(List *stages, const char *id, const char **unknown)
{
	ListCell   *lc;

	if (id == NULL || id[0] == '\0')
		return NULL;
	foreach(lc, stages)
	{
		const HsStage *stage = lfirst(lc);

		if (strcmp(stage->id, id) == 0)
			return stage->status;
	}
	*unknown = id;
	return NULL;
}

/*
 * Fills in the record's values for the mapping's inputs.  Returns a stage
 * that `stages` says nothing about, else NULL; the caller then learns about
 * it and fills the record again.  Does not throw for any content.
 */
const char *
hs_mapping_fill(const HsMapping *mapping, HsRecord *record, List *stages)
{
	const char *unknown = NULL;

	if (record->values == NULL)
		record->values = palloc(sizeof(char *) * mapping->ninputs);
	for (int i = 0; i < mapping->ninputs; i++)
	{
		const HsColumn *column = &mapping->columns[i];
		const HsJson *value = column->property
			? hs_json_member(record->properties, column->property) : NULL;
		const char *text = NULL;

		switch (column->kind)
		{
			case HS_COLUMN_ID:
				text = record->id;
				break;
			case HS_COLUMN_VALUE:
				text = value_text(column, value);
				break;
			case HS_COLUMN_DEAL_STATUS:
				text = stage_status(stages, hs_json_text(value), &unknown);
				break;
			case HS_COLUMN_OWNER_NAME:
				text = owner_name(record->properties);
				break;
			case HS_COLUMN_CONSTANT:
				text = column->argument;
				break;
			case HS_COLUMN_REASON:
				text = record->archived ? HS_REASON_ARCHIVED : NULL;
				break;
			case HS_COLUMN_PROPERTIES:
			case HS_COLUMN_ARCHIVED:
			case HS_COLUMN_ARCHIVED_AT:
			case HS_COLUMN_UPDATED_AT:
			case HS_COLUMN_MERGED_INTO:
			case HS_COLUMN_NOW:
			case HS_COLUMN_CONNECTION:
				break;
		}
		record->values[i] = unconstify(char *, text);
		if (!is_plausible(column, text))
			record->refused = column;
	}
	return unknown;
}

/*
 * The value, in its column's type, of a column that the sync fills by itself
 * with what is no text: the properties received (where all there are were
 * asked for, those that have a value), and what is known of the record.  In
 * the current memory context.  Throws, as for a record's fault, where jsonb
 * cannot hold the properties.
 */
Datum
hs_mapping_own_value(const HsMapping *mapping, const HsColumn *column,
					 const HsRecord *record, bool *isnull)
{
	TimestampTz t = record->updated_at;

	*isnull = false;
	if (column->kind == HS_COLUMN_PROPERTIES)
		return hs_json_object_to_jsonb(record->properties,
									   !mapping->all_properties,
									   mapping->order);
	if (column->kind == HS_COLUMN_ARCHIVED)
		return BoolGetDatum(record->archived);
	if (column->kind == HS_COLUMN_ARCHIVED_AT)
		t = record->archived ? record->archived_at : 0;
	*isnull = t == 0;
	return TimestampTzGetDatum(t);
}

/*
 * Reads one value as its column's type; throws if the type refuses it.
 */
void
hs_mapping_try_value(const HsMapping *mapping, const HsRecord *record,
					 int column)
{
	Oid			input;
	Oid			param;
	bool		isnull;

	if (mapping->columns[column].kind == HS_COLUMN_PROPERTIES)
	{
		(void) hs_mapping_own_value(mapping, &mapping->columns[column], record,
									&isnull);
		return;
	}
	getTypeInputInfo(mapping->columns[column].type, &input, &param);
	(void) OidInputFunctionCall(input, record->values[column], param,
								mapping->columns[column].typmod);
}
