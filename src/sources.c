/*-------------------------------------------------------------------------
 *
 * sources.c
 *	  The school's tables: which there are, and what their columns are called.
 *
 * Nothing is assumed: tables and columns are looked up in the catalog, under
 * their usual names or those in progress_sources.  What is missing, or has a
 * type that makes no sense, is left out with a remark; only users with an id
 * and an e-mail address are indispensable.
 *
 * A push executes what it finds as the owner of users, so every source must
 * belong to the same role: nobody else's view or type may run code as him.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "compat.h"
#include "json.h"
#include "sources.h"

#define UNITS_SUFFIX "_progress"
#define MILESTONES_SUFFIX "_milestones"

/* What a column's type has to be good for. */
typedef enum Use
{
	USE_ANY,
	USE_FLAG,
	USE_NUMBER,
	USE_TIME
} Use;

static const char *const use_names[] = {
	[USE_FLAG] = "a flag",
	[USE_NUMBER] = "a number",
	[USE_TIME] = "an instant"
};

/* The columns of each source, by their usual names. */
typedef struct Expected
{
	const char *source;
	const char *column;
	HsSourceRole role;
	Use			use;
	bool		required;		/* the source is worth nothing without it */
	bool		quiet;			/* nobody need know that it is missing */
} Expected;

static const Expected expected[] = {
	{"users", "id", HS_ROLE_USER, USE_ANY, true, false},
	{"users", "email", HS_ROLE_EMAIL, USE_ANY, true, false},
	{"users", "course_id", HS_ROLE_COURSE, USE_ANY, false, false},
	{"course_progress", "user_id", HS_ROLE_USER, USE_ANY, true, false},
	{"course_progress", "lesson_id", HS_ROLE_ITEM, USE_ANY, true, false},
	{"course_progress", "completed", HS_ROLE_DONE, USE_FLAG, false, false},
	{"course_progress", "score", HS_ROLE_SCORE, USE_NUMBER, false, false},
	{"course_progress", "time_spent", HS_ROLE_TIME, USE_NUMBER, false, false},
	{"course_progress", "last_accessed_at", HS_ROLE_ACTIVE_AT, USE_TIME, false, false},
	{"user_streaks", "user_id", HS_ROLE_USER, USE_ANY, true, false},
	{"user_streaks", "current_streak", HS_ROLE_STREAK, USE_NUMBER, true, false},
	{"user_streaks", "updated_at", HS_ROLE_UPDATED_AT, USE_TIME, false, true},
	{"user_streaks", "created_at", HS_ROLE_CREATED_AT, USE_TIME, false, true},
	{"user_xp", "user_id", HS_ROLE_USER, USE_ANY, true, false},
	{"user_xp", "total_xp", HS_ROLE_XP, USE_NUMBER, true, false},
	{"course_lessons", "course_id", HS_ROLE_COURSE, USE_ANY, true, false},
	{"course_lessons", "lesson_id", HS_ROLE_ITEM, USE_ANY, true, false},
	{"level", "user_id", HS_ROLE_USER, USE_ANY, true, false},
	{"level", "unit_id", HS_ROLE_ITEM, USE_ANY, true, false},
	{"level", "status", HS_ROLE_STATUS, USE_ANY, false, false},
	{"level", "completed_at", HS_ROLE_DONE_AT, USE_ANY, false, false},
	{"level", "accuracy_percentage", HS_ROLE_SCORE, USE_NUMBER, false, false},
	{"level", "time_spent_minutes", HS_ROLE_TIME, USE_NUMBER, false, false},
	{"level", "last_activity", HS_ROLE_ACTIVE_AT, USE_TIME, false, false},
	{"milestones", "user_id", HS_ROLE_USER, USE_ANY, true, false},
};

/* A search for sources. */
typedef struct Search
{
	List	   *rows;			/* of HsSourceRow *: progress_sources */
	Oid			schema;			/* of users */
	Oid			owner;			/* of users */
	List	   *used;			/* of Oid: tables that are a source already */
	List	   *remarks;
} Search;

/* Notes what is left out, and why. */
static void
remark(Search *search, char *text)
{
	search->remarks = lappend(search->remarks, text);
}

/* ------------------------------------------------------------------------
 * Columns
 * ------------------------------------------------------------------------
 */

/* Whether a type serves a use; see the expressions in progress.c. */
static bool
type_serves(Oid type, Use use)
{
	char		category;
	bool		preferred;

	get_type_category_preferred(type, &category, &preferred);
	switch (use)
	{
		case USE_FLAG:
			return type == BOOLOID || category == TYPCATEGORY_STRING ||
				type == INT2OID || type == INT4OID || type == INT8OID ||
				type == NUMERICOID;
		case USE_NUMBER:
			return category == TYPCATEGORY_STRING || type == INT2OID ||
				type == INT4OID || type == INT8OID || type == NUMERICOID ||
				type == FLOAT4OID || type == FLOAT8OID;
		case USE_TIME:
			return type == TIMESTAMPTZOID || type == TIMESTAMPOID ||
				type == DATEOID;
		case USE_ANY:
			break;
	}
	return true;
}

/*
 * The name of a column in a source: the usual one, or what the configuration
 * says, NULL if it says that there is none.
 */
static const char *
column_name(const HsJson *names, const char *usual)
{
	if (!hs_json_has(names, usual))
		return usual;
	return hs_json_text(hs_json_member(names, usual));
}

/*
 * Whether a type may be read as the owner of users: whoever owns a type decides
 * how it is cast to text.
 */
static bool
is_trusted(const Search *search, Oid type)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		return false;
	owner = ((Form_pg_type) GETSTRUCT(tuple))->typowner;
	ReleaseSysCache(tuple);
	return owner == search->owner || superuser_arg(owner);
}

/*
 * Looks a column up.  Returns false, with a remark, if the source is worth
 * nothing without it.
 */
static bool
find_column(Search *search, HsSource *source, const Expected *want,
			const HsJson *names)
{
	const char *name = column_name(names, want->column);
	AttrNumber	attno = name ? get_attnum(source->relation, name)
		: InvalidAttrNumber;
	Oid			type;
	Oid			collation;
	int32		typmod;

	if (attno <= 0)
	{
		if (want->required || (!want->quiet && name != NULL))
			remark(search, psprintf("table %s has no column %s", source->label,
									name ? name : want->column));
		return !want->required;
	}
	get_atttypetypmodcoll(source->relation, attno, &type, &typmod, &collation);
	if (!is_trusted(search, type) || !is_trusted(search, getBaseType(type)))
	{
		remark(search, psprintf("column %s of table %s has a type of another role's",
								name, source->label));
		return !want->required;
	}
	type = getBaseType(type);
	if (!type_serves(type, want->use))
	{
		remark(search, psprintf("column %s of table %s has type %s and is not %s", name,
								source->label, format_type_be(type), use_names[want->use]));
		return !want->required;
	}
	source->columns[want->role].name = pstrdup(quote_identifier(name));
	source->columns[want->role].type = type;
	source->columns[want->role].collation = collation;
	source->columns[want->role].number = attno;
	return true;
}

/* ------------------------------------------------------------------------
 * Tables
 * ------------------------------------------------------------------------
 */

/* Whether a unique index makes sure that columns of these numbers repeat not. */
static bool
index_covers(Oid index, AttrNumber first, AttrNumber second)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	Form_pg_index form;
	bool		covers;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_index) GETSTRUCT(tuple);
	covers = form->indisunique && form->indimmediate && form->indisvalid &&
		heap_attisnull(tuple, Anum_pg_index_indpred, NULL) &&
		heap_attisnull(tuple, Anum_pg_index_indexprs, NULL);
	for (int i = 0; covers && i < form->indnkeyatts; i++)
		covers = form->indkey.values[i] == first ||
			form->indkey.values[i] == second;
	ReleaseSysCache(tuple);
	return covers;
}

/* Finds out what a table's indexes promise. */
static void
find_promises(HsSource *source)
{
	AttrNumber	user = source->columns[HS_ROLE_USER].number;
	AttrNumber	item = source->columns[HS_ROLE_ITEM].number;
	Relation	rel = table_open(source->relation, AccessShareLock);
	/* An index knows nothing of rows in children. */
	List	   *indexes = rel->rd_rel->relkind == RELKIND_RELATION &&
		!rel->rd_rel->relhassubclass
		? RelationGetIndexList(rel)
		: NIL;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		source->one_per_user |= index_covers(lfirst_oid(lc), user, user);
		source->one_per_item |= AttributeNumberIsValid(item) &&
			index_covers(lfirst_oid(lc), user, item);
	}
	table_close(rel, AccessShareLock);
}

/* Whether rows can be read from a relation of this kind. */
static bool
is_readable(char relkind)
{
	return relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE ||
		relkind == RELKIND_VIEW || relkind == RELKIND_MATVIEW ||
		relkind == RELKIND_FOREIGN_TABLE;
}

/*
 * Locks the relation of this name against changes until the transaction ends.
 * InvalidOid if there is none, or none any more once whoever changes it has
 * ended.
 */
static Oid
lock_table(Oid schema, const char *name)
{
	Oid			relation = get_relname_relid(name, schema);
	Oid			locked = InvalidOid;

	while (relation != locked)
	{
		if (OidIsValid(locked))
			UnlockRelationOid(locked, AccessShareLock);
		locked = relation;
		if (OidIsValid(locked))
			LockRelationOid(locked, AccessShareLock);
		relation = get_relname_relid(name, schema);
	}
	return relation;
}

/*
 * Whether rows can be read from a relation and its owner is that of users.  If
 * not, leaves a remark, unless the relation is not there any more.
 */
static bool
may_read(Search *search, Oid relation, const char *name)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	Form_pg_class class;
	char	   *problem = NULL;

	if (!HeapTupleIsValid(tuple))
		return false;
	class = (Form_pg_class) GETSTRUCT(tuple);
	if (!is_readable(class->relkind))
		problem = psprintf("%s is not a table", name);
	else if (class->relowner != search->owner)
		problem = psprintf("table %s has another owner than users", name);
	ReleaseSysCache(tuple);
	if (problem != NULL)
		remark(search, problem);
	return problem == NULL;
}

/*
 * The relation of this name, locked, if it may be read; what is somebody
 * else's is not even waited for.  InvalidOid otherwise, with a remark unless
 * it just is not there.
 */
static Oid
find_table(Search *search, Oid schema, const char *name)
{
	Oid			relation = OidIsValid(schema) ? get_relname_relid(name, schema)
		: InvalidOid;

	if (!OidIsValid(relation) || !may_read(search, relation, name))
		return InvalidOid;
	relation = lock_table(schema, name);
	return OidIsValid(relation) && may_read(search, relation, name)
		? relation : InvalidOid;
}

/*
 * The source that a locked relation is, NULL with a remark if it lacks what it
 * needs.
 */
static HsSource *
make_source(Search *search, const char *kind, Oid relation,
			const char *columns)
{
	HsSource   *source = palloc0(sizeof(HsSource));
	const char *schema = get_namespace_name(get_rel_namespace(relation));
	const char *name = get_rel_name(relation);
	HsJsonParse names = {0};

	source->relation = relation;
	source->table = quote_qualified_identifier(schema, name);
	source->label = source->table;
	if (columns != NULL)
		names = hs_json_parse(columns, strlen(columns));
	for (size_t i = 0; i < lengthof(expected); i++)
	{
		if (strcmp(expected[i].source, kind) == 0 &&
			!find_column(search, source, &expected[i], names.root))
			return NULL;
	}
	find_promises(source);
	search->used = lappend_oid(search->used, relation);
	return source;
}

/* The row of progress_sources about a source, NULL if there is none. */
static const HsSourceRow *
find_row(const Search *search, const char *kind, const char *level)
{
	ListCell   *lc;

	foreach(lc, search->rows)
	{
		const HsSourceRow *row = lfirst(lc);

		if (strcmp(row->source, kind) == 0 && strcmp(row->level, level) == 0)
			return row;
	}
	return NULL;
}

/* The schema that a row names, or that of users. */
static Oid
row_schema(const Search *search, const HsSourceRow *row)
{
	return row == NULL || row->schema == NULL ? search->schema
		: get_namespace_oid(row->schema, true);
}

/* One of the sources that belong to no level, NULL if it is left out. */
static HsSource *
find_source(Search *search, const char *kind)
{
	const HsSourceRow *row = find_row(search, kind, "");
	const char *name = row ? row->table : kind;
	Oid			relation;
	int			remarks = list_length(search->remarks);

	if (row != NULL && !row->enabled)
		return NULL;
	relation = find_table(search, row_schema(search, row), name);
	if (!OidIsValid(relation))
	{
		if (list_length(search->remarks) == remarks)
			remark(search, psprintf("there is no table %s", name));
		return NULL;
	}
	return make_source(search, kind, relation, row ? row->columns : NULL);
}

/* ------------------------------------------------------------------------
 * Users
 * ------------------------------------------------------------------------
 */

/* The relation of users.  Throws 42P01 if there is none. */
static Oid
require_users(List *rows)
{
	Search		search = {.rows = rows};
	const HsSourceRow *row = find_row(&search, "users", "");
	Oid			relation = InvalidOid;

	if (row != NULL)
	{
		Oid			schema = get_namespace_oid(row->schema, true);

		if (OidIsValid(schema))
			relation = get_relname_relid(row->table, schema);
	}
	if (!OidIsValid(relation) || !is_readable(get_rel_relkind(relation)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("there is no table \"%s.%s\" with students",
						row ? row->schema : "public",
						row ? row->table : "users"),
				 errhint("Say in progress_sources which schema and table has the students' ids and e-mail addresses.")));
	return relation;
}

/*
 * The relation that holds the students; its owner is who runs of progress
 * run as.  Throws 42P01 if there is none.
 */
Oid
hs_sources_users(void)
{
	return require_users(hs_catalog_progress_sources());
}

/* Throws that a relation has changed hands. */
pg_noreturn static void
wrong_owner(Oid relation)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("table \"%s\" belongs to another role than when the run was requested",
					get_rel_name(relation)),
			 errhint("Request the run again.")));
}

/* The relation of users, locked.  Throws 42P01 if there is none. */
static Oid
lock_users(List *rows)
{
	Oid			relation = require_users(rows);

	LockRelationOid(relation, AccessShareLock);
	if (require_users(rows) != relation)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the table with students was replaced meanwhile"),
				 errhint("Try again.")));
	return relation;
}

/*
 * Users with their columns.  Throws if one that is needed is not there, or if
 * they do not belong to `owner`, unless that is InvalidOid.
 */
static HsSource *
find_users(Search *search, Oid owner)
{
	const HsSourceRow *row = find_row(search, "users", "");
	Oid			relation = lock_users(search->rows);
	HsSource   *users;

	Assert(row != NULL);
	search->schema = get_rel_namespace(relation);
	search->owner = hs_catalog_table_owner(relation);
	if (OidIsValid(owner) && search->owner != owner)
		wrong_owner(relation);
	users = make_source(search, "users", relation, row->columns);
	if (users == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("the students in \"%s\" cannot be read",
						get_rel_name(relation)),
				 errdetail_internal("%s.", (char *) llast(search->remarks)),
				 errhint("Students need an id and an e-mail address; if these columns have other names, say so in the column columns of progress_sources.")));
	return users;
}

/* ------------------------------------------------------------------------
 * Levels
 * ------------------------------------------------------------------------
 */

/* A table that may hold a level's units. */
typedef struct Candidate
{
	const char *level;
	Oid			relation;
	const char *prefix;			/* of the names of its tables */
	const HsSourceRow *row;		/* NULL: nobody has configured it */
} Candidate;

/* Whether a name can be part of a property's. */
static bool
is_level_name(const char *name)
{
	if (name[0] < 'a' || name[0] > 'z')
		return false;
	return strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == strlen(name);
}

static Candidate *
add_candidate(List **candidates, const char *level, Oid relation,
			  const char *prefix, const HsSourceRow *row)
{
	Candidate  *candidate = palloc(sizeof(Candidate));

	candidate->level = level;
	candidate->relation = relation;
	candidate->prefix = prefix;
	candidate->row = row;
	*candidates = lappend(*candidates, candidate);
	return candidate;
}

static Candidate *
find_candidate(List *candidates, const char *level)
{
	ListCell   *lc;

	foreach(lc, candidates)
	{
		Candidate  *candidate = lfirst(lc);

		if (strcmp(candidate->level, level) == 0)
			return candidate;
	}
	return NULL;
}

/* The levels whose tables are named in progress_sources. */
static List *
named_levels(Search *search)
{
	List	   *candidates = NIL;
	ListCell   *lc;

	foreach(lc, search->rows)
	{
		const HsSourceRow *row = lfirst(lc);
		Oid			relation;

		int			remarks = list_length(search->remarks);
		const char *table = row->table;

		if (strcmp(row->source, "level") != 0)
			continue;
		if (table == NULL)
			table = psprintf("%s%s", row->level, UNITS_SUFFIX);
		/* What is disabled is not read, so nobody need wait for it. */
		relation = row->enabled
			? find_table(search, row_schema(search, row), table)
			: get_relname_relid(table, row_schema(search, row));
		if (OidIsValid(relation))
			(void) add_candidate(&candidates, row->level, relation, row->level,
								 row);
		else if (row->table != NULL && row->enabled &&
				 list_length(search->remarks) == remarks)
			remark(search, psprintf("there is no table %s of level %s", row->table,
									row->level));
	}
	return candidates;
}

/* Whether a relation is a candidate's. */
static bool
is_taken(const Search *search, List *candidates, Oid relation)
{
	ListCell   *lc;

	if (list_member_oid(search->used, relation))
		return true;
	foreach(lc, candidates)
	{
		if (((Candidate *) lfirst(lc))->relation == relation)
			return true;
	}
	return false;
}

/*
 * Adds a table that looks like a level's, unless it has gone meanwhile.  One
 * that was named explicitly goes first.  Throws if two that were found give
 * one level.
 */
static void
add_found_level(Search *search, List **candidates, const char *table)
{
	Oid			relation = get_relname_relid(table, search->schema);
	char	   *prefix = pnstrdup(table, strlen(table) - strlen(UNITS_SUFFIX));
	char	   *level = asc_tolower(prefix, strlen(prefix));
	const HsSourceRow *row = find_row(search, "level", level);
	Candidate  *other;

	if (row != NULL && !row->enabled)
		return;
	/* Nobody need wait for what another row has, which may be disabled. */
	if (is_taken(search, *candidates, relation))
		return;
	relation = find_table(search, search->schema, table);
	if (!OidIsValid(relation) || is_taken(search, *candidates, relation))
		return;
	if (!is_level_name(level))
	{
		remark(search, psprintf("table %s gives no level, whose name must begin with a letter and have only letters, digits and underscores",
								table));
		return;
	}
	other = find_candidate(*candidates, level);
	if (other == NULL)
		(void) add_candidate(candidates, level, relation, prefix, row);
	else if (other->row == NULL || other->row->table == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("tables \"%s\" and \"%s\" both give level \"%s\"",
						get_rel_name(other->relation), table, level),
				 errhint("Give one of them another level's name in progress_sources, or disable it there.")));
}

/* The table of a level's milestones, NULL if there is none. */
static HsSource *
find_milestones(Search *search, const Candidate *candidate)
{
	const HsSourceRow *row = find_row(search, "milestones", candidate->level);
	const char *name = psprintf("%s%s", candidate->prefix, MILESTONES_SUFFIX);
	Oid			schema = get_rel_namespace(candidate->relation);
	int			remarks = list_length(search->remarks);
	Oid			relation;

	if (row != NULL && !row->enabled)
		return NULL;
	if (row != NULL && row->table != NULL)
		name = row->table;
	if (row != NULL && row->schema != NULL)
		schema = row_schema(search, row);
	relation = find_table(search, schema, name);
	if (!OidIsValid(relation))
	{
		if (list_length(search->remarks) == remarks)
			remark(search, psprintf("there is no table %s with milestones", name));
		return NULL;
	}
	return make_source(search, "milestones", relation, row ? row->columns : NULL);
}

/* Makes a level of a candidate, NULL if its table lacks what it needs. */
static HsLevel *
make_level(Search *search, const Candidate *candidate)
{
	const HsSourceRow *row = candidate->row;
	HsLevel    *level = palloc0(sizeof(HsLevel));

	level->name = pstrdup(candidate->level);
	level->units = make_source(search, "level", candidate->relation,
							   row ? row->columns : NULL);
	if (level->units == NULL)
		return NULL;
	level->milestones = find_milestones(search, candidate);
	level->total_units = row ? row->total_units : 0;
	return level;
}

static int
compare_candidates(const ListCell *a, const ListCell *b)
{
	return strcmp(((Candidate *) lfirst(a))->level,
				  ((Candidate *) lfirst(b))->level);
}

/* All levels, by name. */
static List *
find_levels(Search *search)
{
	List	   *candidates = named_levels(search);
	List	   *levels = NIL;
	ListCell   *lc;

	foreach(lc, hs_catalog_level_tables(search->schema, search->owner))
		add_found_level(search, &candidates, lfirst(lc));
	list_sort(candidates, compare_candidates);
	foreach(lc, candidates)
	{
		Candidate  *candidate = lfirst(lc);
		HsLevel    *level;

		if (candidate->row != NULL && !candidate->row->enabled)
			continue;
		level = make_level(search, candidate);
		if (level != NULL)
			levels = lappend(levels, level);
	}
	return levels;
}

/*
 * Finds the school's tables, as the current user sees the catalog.  The result
 * belongs to the current memory context.  They must belong to `owner`, unless
 * that is InvalidOid.  Throws where there are no usable
 * users, or two tables give one level; whatever else is missing is among the
 * remarks.
 */
HsSources *
hs_sources_find(Oid owner)
{
	HsSources  *sources = palloc0(sizeof(HsSources));
	Search		search = {.rows = hs_catalog_progress_sources()};

	sources->users = find_users(&search, owner);
	sources->owner = search.owner;
	sources->course = find_source(&search, "course_progress");
	sources->streaks = find_source(&search, "user_streaks");
	sources->xp = find_source(&search, "user_xp");
	sources->lessons = find_source(&search, "course_lessons");
	sources->levels = find_levels(&search);
	sources->remarks = search.remarks;
	return sources;
}

/* Throws unless a source is the table that was found, and its owner's. */
static void
lock_source(const HsSource *source, Oid owner)
{
	const char *schema;
	const char *name;

	if (source == NULL)
		return;
	LockRelationOid(source->relation, AccessShareLock);
	name = get_rel_name(source->relation);
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table %s is not there any more", source->label)));
	schema = get_namespace_name(get_rel_namespace(source->relation));
	if (strcmp(quote_qualified_identifier(schema, name), source->table) != 0 ||
		hs_catalog_table_owner(source->relation) != owner)
		wrong_owner(source->relation);
}

/*
 * Keeps the sources as they were found until the transaction ends.  Throws if
 * one is not any more: its name may lead to somebody else's table.
 */
void
hs_sources_lock(const HsSources *sources)
{
	ListCell   *lc;

	lock_source(sources->users, sources->owner);
	lock_source(sources->course, sources->owner);
	lock_source(sources->streaks, sources->owner);
	lock_source(sources->xp, sources->owner);
	lock_source(sources->lessons, sources->owner);
	foreach(lc, sources->levels)
	{
		const HsLevel *level = lfirst(lc);

		lock_source(level->units, sources->owner);
		lock_source(level->milestones, sources->owner);
	}
}

/* Whether a source has a column of this usual name. */
static bool
is_expected(const char *source, const char *column)
{
	for (size_t i = 0; i < lengthof(expected); i++)
	{
		if (strcmp(expected[i].source, source) == 0 &&
			strcmp(expected[i].column, column) == 0)
			return true;
	}
	return false;
}

static bool
is_required(const char *source, const char *column)
{
	for (size_t i = 0; i < lengthof(expected); i++)
	{
		if (strcmp(expected[i].source, source) == 0 &&
			strcmp(expected[i].column, column) == 0)
			return expected[i].required;
	}
	return false;
}

/*
 * What is wrong with a value of progress_sources.columns, NULL if nothing is.
 */
const char *
hs_sources_column_problem(const char *source, const char *columns)
{
	const HsJson *root = hs_json_parse(columns, strlen(columns)).root;
	const char **names;
	int			n = hs_json_names(root, &names);

	for (int i = 0; i < n; i++)
	{
		HsJsonType	type = hs_json_type(hs_json_member(root, names[i]));

		if (!is_expected(source, names[i]))
			return psprintf("source \"%s\" has no column \"%s\"", source,
							names[i]);
		if (type == HS_JSON_NULL && is_required(source, names[i]))
			return psprintf("column \"%s\" cannot be left out", names[i]);
		if (type != HS_JSON_STRING && type != HS_JSON_NULL)
			return psprintf("the name of column \"%s\" must be text or null",
							names[i]);
	}
	return NULL;
}
