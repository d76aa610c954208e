/*-------------------------------------------------------------------------
 *
 * properties.c
 *	  The properties that HubSpot needs for students' progress.
 *
 * HubSpot's definitions are compared with what is needed: missing groups,
 * properties and options are created.  Creating a property whose name an
 * archived one has restores that one (facts section 9).  A property that
 * exists with another type is not touched: it is unusable, which is noted for
 * the run's report, and the push goes without it.
 *
 * What was found is kept for an hour, so that not every push asks again.  A
 * refused value or an unknown property makes it doubtful at once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "api.h"
#include "catalog.h"
#include "json.h"
#include "properties.h"

#define OBJECT_TYPE "contacts"

/* How long what was found counts. */
#define KNOWN_FOR_S (1.0 * SECS_PER_HOUR)

#define COURSE_GROUP "progresstracking"
#define LEVEL_GROUP "level_progress"

static const struct
{
	const char *name;
	const char *label;
} groups[] = {
	{COURSE_GROUP, "Progress tracking"},
	{LEVEL_GROUP, "Level Progress"},
};

/* HubSpot's names for our types; the pairs are those it accepts. */
static const struct
{
	const char *type;
	const char *field_type;
} types[] = {
	[HS_METRIC_NUMBER] = {"number", "number"},
	[HS_METRIC_STRING] = {"string", "text"},
	[HS_METRIC_TEXT] = {"string", "textarea"},
	[HS_METRIC_DATE] = {"date", "date"},
	[HS_METRIC_DATETIME] = {"datetime", "date"},
	[HS_METRIC_STATUS] = {"enumeration", "select"},
};

static const char *const status_labels[] = {
	"Not started", "In progress", "Completed"
};

/* A comparison under way. */
typedef struct Comparison
{
	HsRun	   *run;
	const HsProgress *progress;
	HsPropertyReport *report;
	const HsJson *definitions;
	bool		grouped;		/* the groups are there */
	List	   *created;		/* of char * */
	const char **problems;		/* parallel to the metrics */
} Comparison;

/* ------------------------------------------------------------------------
 * Bodies
 * ------------------------------------------------------------------------
 */

/* Appends one option of an enumeration. */
static void
append_option(StringInfo out, const char *value, const char *label, int order)
{
	appendStringInfoString(out, order > 0 ? ",{\"label\":" : "{\"label\":");
	hs_json_append_string(out, label);
	appendStringInfoString(out, ",\"value\":");
	hs_json_append_string(out, value);
	appendStringInfo(out, ",\"displayOrder\":%d,\"hidden\":false}", order);
}

/* The body that creates a property. */
static char *
creation_body(const HsMetric *metric)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"name\":");
	hs_json_append_string(&body, metric->name);
	appendStringInfoString(&body, ",\"label\":");
	hs_json_append_string(&body, metric->label);
	appendStringInfo(&body, ",\"type\":\"%s\",\"fieldType\":\"%s\",\"groupName\":\"%s\"",
					 types[metric->type].type, types[metric->type].field_type,
					 metric->level ? LEVEL_GROUP : COURSE_GROUP);
	if (metric->type == HS_METRIC_STATUS)
	{
		appendStringInfoString(&body, ",\"options\":[");
		for (int i = 0; i < hs_level_nstatuses; i++)
			append_option(&body, hs_level_statuses[i], status_labels[i], i);
		appendStringInfoChar(&body, ']');
	}
	appendStringInfoChar(&body, '}');
	return body.data;
}

/* Whether a list of objects has one with this text as a member. */
static bool
has_member(const HsJson *list, const char *member, const char *text)
{
	for (int i = 0; i < hs_json_length(list); i++)
	{
		const char *other = hs_json_text(hs_json_member(hs_json_element(list, i),
														member));

		if (other != NULL && strcmp(other, text) == 0)
			return true;
	}
	return false;
}

/*
 * The body that adds the options an enumeration lacks, NULL if it lacks none.
 * The list replaces the present one (facts section 9), so that is repeated.
 */
static char *
options_body(const HsJson *options)
{
	StringInfoData body;
	int			n = hs_json_length(options);
	bool		lacks = false;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"options\":[");
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			appendStringInfoChar(&body, ',');
		hs_json_append(&body, hs_json_element(options, i));
	}
	for (int i = 0; i < hs_level_nstatuses; i++)
	{
		if (has_member(options, "value", hs_level_statuses[i]))
			continue;
		append_option(&body, hs_level_statuses[i], status_labels[i], n++);
		lacks = true;
	}
	appendStringInfoString(&body, "]}");
	return lacks ? body.data : NULL;
}

/* ------------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------------
 */

/* Reads all definitions. */
static void
read_definitions(Comparison *c)
{
	HsApi	   *api = c->run->api;

	c->definitions = hs_json_member(hs_api_finish(api, hs_api_properties(api, OBJECT_TYPE)),
									"results");
}

/*
 * Creates the groups that are missing.  Whether an existing group's name is
 * answered with 409 is unverified; somebody may also have been quicker.  What
 * is wrong shows when the first property is created.
 */
static void
create_groups(Comparison *c)
{
	HsApi	   *api = c->run->api;
	const HsJson *present;

	if (c->grouped)
		return;
	c->grouped = true;
	present = hs_json_member(hs_api_finish(api, hs_api_groups(api, OBJECT_TYPE)),
							 "results");
	for (size_t i = 0; i < lengthof(groups); i++)
	{
		HsApiCall  *call;

		if (has_member(present, "name", groups[i].name))
			continue;
		call = hs_api_create_group(api, OBJECT_TYPE,
								   psprintf("{\"name\":\"%s\",\"label\":\"%s\"}",
											groups[i].name, groups[i].label));
		api->tolerates = HS_TOLERATE_REFUSAL;
		(void) hs_api_finish(api, call);
	}
}

/* Whether a definition is that of a property. */
static bool
defines(const HsJson *definition, const char *name)
{
	const char *other = hs_json_text(hs_json_member(definition, "name"));

	return other != NULL && strcmp(other, name) == 0;
}

/* The definition of a property, NULL if there is none that is not archived. */
static const HsJson *
find_definition(const Comparison *c, const char *name)
{
	for (int i = 0; i < hs_json_length(c->definitions); i++)
	{
		const HsJson *definition = hs_json_element(c->definitions, i);
		bool		archived = false;

		(void) hs_json_bool(hs_json_member(definition, "archived"), &archived);
		if (defines(definition, name) && !archived)
			return definition;
	}
	return NULL;
}

/*
 * What is wrong with a definition, NULL if nothing is.  Another kind of field
 * takes the same values, so only the type matters.
 */
static char *
definition_problem(const HsApi *api, const HsMetric *metric,
				   const HsJson *definition)
{
	const char *type = hs_json_text(hs_json_member(definition, "type"));
	bool		read_only = false;
	bool		calculated = false;

	if (type == NULL || strcmp(type, types[metric->type].type) != 0)
		return psprintf("property \"%s\" exists in HubSpot with type %s, not %s",
						metric->name,
						type ? hs_api_safe_text(api, type) : "unknown",
						types[metric->type].type);
	(void) hs_json_bool(hs_json_path(definition, "modificationMetadata",
									 "readOnlyValue"),
						&read_only);
	(void) hs_json_bool(hs_json_member(definition, "calculated"), &calculated);
	if (read_only || calculated)
		return psprintf("property \"%s\" is read-only in HubSpot", metric->name);
	return NULL;
}

/* Adds the options that a level's status lacks. */
static char *
complete_options(Comparison *c, const HsMetric *metric, const HsJson *definition)
{
	HsApi	   *api = c->run->api;
	char	   *body = options_body(hs_json_member(definition, "options"));

	if (body == NULL)
		return NULL;
	api->tolerates = HS_TOLERATE_REFUSAL;
	if (hs_api_finish(api, hs_api_change_property(api, OBJECT_TYPE, metric->name,
												  body)) == NULL)
		return psprintf("property \"%s\" lacks options, and HubSpot refuses to add them: %s",
						metric->name, hs_api_refusal_text(api));
	return NULL;
}

/*
 * Creates a property.  Returns what is wrong with it afterwards, NULL if
 * nothing is: one that was restored may have another type.
 */
static char *
create_property(Comparison *c, const HsMetric *metric)
{
	HsApi	   *api = c->run->api;
	const HsJson *definition;
	char	   *problem;

	create_groups(c);
	api->tolerates = HS_TOLERATE_REFUSAL;
	definition = hs_api_finish(api, hs_api_create_property(api, OBJECT_TYPE,
														   creation_body(metric)));
	problem = definition != NULL ? pstrdup("the answer is about something else")
		: hs_api_refusal_text(api);
	if (definition == NULL ? api->refusal_status == 409
		: !defines(definition, metric->name))
	{
		/*
		 * Somebody was quicker, perhaps we ourselves, whose first request has
		 * lost its answer; or the answer tells nothing.
		 */
		read_definitions(c);
		definition = find_definition(c, metric->name);
	}
	if (definition == NULL)
		return psprintf("HubSpot does not create property \"%s\": %s",
						metric->name, problem);
	c->created = lappend(c->created, metric->name);
	problem = definition_problem(api, metric, definition);
	if (problem == NULL && metric->type == HS_METRIC_STATUS)
		problem = complete_options(c, metric, definition);
	return problem;
}

/* Makes a property what it has to be; returns the problem if it cannot be. */
static char *
ensure_property(Comparison *c, const HsMetric *metric)
{
	const HsJson *definition = find_definition(c, metric->name);
	char	   *problem;

	if (definition == NULL)
		return create_property(c, metric);
	problem = definition_problem(c->run->api, metric, definition);
	if (problem == NULL && metric->type == HS_METRIC_STATUS)
		problem = complete_options(c, metric, definition);
	return problem;
}

/* ------------------------------------------------------------------------
 * What is known
 * ------------------------------------------------------------------------
 */

/* Writes down what was found; what was created has no values any more. */
static void
save(Comparison *c)
{
	const pg_uuid_t *connection = &c->run->request.connection_id;
	int			n = list_length(c->progress->metrics);
	const char **names = palloc(sizeof(char *) * Max(n, 1));
	const char **created = palloc(sizeof(char *) * Max(n, 1));
	int			ncreated = 0;
	ListCell   *lc;

	foreach(lc, c->progress->metrics)
		names[foreach_current_index(lc)] = ((HsMetric *) lfirst(lc))->name;
	foreach(lc, c->created)
		created[ncreated++] = lfirst(lc);
	hs_run_begin(c->run);
	hs_catalog_save_progress_properties(connection, names, c->problems, n);
	if (ncreated > 0)
		c->report->forgotten = hs_catalog_forget_progress(connection, created,
														  ncreated);
	hs_run_commit(c->run);
}

/*
 * Compares HubSpot's definitions with what is needed and creates what is
 * missing.  Fills the report, whose lists belong to the run.  Throws what the
 * requests throw; needs that no transaction is open.
 */
void
hs_properties_ensure(HsRun *run, const HsProgress *progress,
					 HsPropertyReport *report)
{
	MemoryContext context = AllocSetContextCreate(run->context,
												  "hubspot_sync definitions",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Comparison	c = {.run = run, .progress = progress, .report = report};
	ListCell   *lc;

	memset(report, 0, sizeof(HsPropertyReport));
	report->needed = list_length(progress->metrics);
	c.problems = palloc0(sizeof(char *) * Max(report->needed, 1));
	read_definitions(&c);
	foreach(lc, progress->metrics)
	{
		const HsMetric *metric = lfirst(lc);
		HsKnownProperty *unusable;
		int			created = list_length(c.created);
		char	   *problem = ensure_property(&c, metric);

		if (problem == NULL)
		{
			report->created += list_length(c.created) - created;
			continue;
		}
		c.problems[foreach_current_index(lc)] = problem;
		MemoryContextSwitchTo(run->context);
		unusable = palloc(sizeof(HsKnownProperty));
		unusable->name = pstrdup(metric->name);
		unusable->problem = pstrdup(problem);
		report->unusable = lappend(report->unusable, unusable);
		MemoryContextSwitchTo(context);
	}
	save(&c);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/*
 * The properties that could not be used when they were looked at, as
 * HsKnownProperty *; *fresh says whether that was lately.  Needs a
 * transaction.
 */
List *
hs_properties_unusable(const pg_uuid_t *connection_id, bool *fresh)
{
	List	   *unusable = NIL;
	ListCell   *lc;

	*fresh = true;
	foreach(lc, hs_catalog_progress_properties(connection_id, KNOWN_FOR_S))
	{
		HsKnownProperty *property = lfirst(lc);

		if (property->problem == NULL)
			continue;
		unusable = lappend(unusable, property);
		*fresh &= property->fresh;
	}
	return unusable;
}

/*
 * The names of properties, as char *.
 */
List *
hs_properties_names(List *properties)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, properties)
		names = lappend(names, ((HsKnownProperty *) lfirst(lc))->name);
	return names;
}

/*
 * Whether everything that is needed was looked at lately.  Needs a
 * transaction.
 */
bool
hs_properties_known(HsRun *run, const HsProgress *progress)
{
	List	   *known = hs_catalog_progress_properties(&run->request.connection_id,
													   KNOWN_FOR_S);
	ListCell   *lc;

	foreach(lc, progress->metrics)
	{
		const HsMetric *metric = lfirst(lc);
		bool		found = false;
		ListCell   *other;

		foreach(other, known)
		{
			const HsKnownProperty *property = lfirst(other);

			found |= property->fresh && strcmp(property->name, metric->name) == 0;
		}
		if (!found)
			return false;
	}
	return true;
}

/*
 * Has the properties compared again before the next use: HubSpot says
 * something else than what was found.
 */
void
hs_properties_doubt(HsRun *run)
{
	hs_run_begin(run);
	hs_catalog_doubt_progress_properties(&run->request.connection_id);
	hs_run_commit(run);
}
