/*-------------------------------------------------------------------------
 *
 * filter.c
 *	  Which records of a type are kept.
 *
 * A type's filters are a JSON object with a member for each property that
 * decides.  A record is kept if every one of them has a value that its member
 * allows:
 *
 *	  "text", 12, true		this value
 *	  null					no value (HubSpot clears values with "")
 *	  [a, b, ...]			one of these
 *	  {"not": ...}			any other
 *
 * Values are compared as text, as HubSpot sends them.  Filters work on
 * arrival, in every mode, since a search could filter but a list cannot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "filter.h"

#define MAX_PROPERTY_NAME 100

/* One property's condition. */
typedef struct Condition
{
	const char *property;
	bool		negated;
	const HsJson *values;		/* an array, or the one value */
} Condition;

struct HsFilter
{
	Condition  *conditions;
	int			n;
};

/* Whether a JSON value can be compared with a property's. */
static bool
is_scalar(const HsJson *value)
{
	return hs_json_type(value) != HS_JSON_ARRAY &&
		hs_json_type(value) != HS_JSON_OBJECT;
}

/* Whether it is one value or an array of them, but not an empty one. */
static bool
are_values(const HsJson *values)
{
	int			n = hs_json_length(values);

	if (hs_json_type(values) != HS_JSON_ARRAY)
		return is_scalar(values);
	for (int i = 0; i < n; i++)
	{
		if (!is_scalar(hs_json_element(values, i)))
			return false;
	}
	return n > 0;
}

/*
 * Whether a text can be a property's name (facts section 9).
 */
bool
hs_filter_is_property_name(const char *name)
{
	size_t		len = strlen(name);

	return len > 0 && len <= MAX_PROPERTY_NAME &&
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == len;
}

/* Reads one property's condition.  Returns false if it makes no sense. */
static bool
parse_condition(Condition *condition, const HsJson *value)
{
	const char **names;

	condition->values = value;
	if (hs_json_type(value) == HS_JSON_OBJECT)
	{
		if (hs_json_names(value, &names) != 1 || strcmp(names[0], "not") != 0)
			return false;
		condition->negated = true;
		condition->values = hs_json_member(value, "not");
	}
	return are_values(condition->values);
}

/*
 * Parses a type's filters; everything belongs to the current memory context.
 * Returns NULL with what is wrong in `problem`; does not throw for any text.
 */
HsFilter *
hs_filter_parse(const char *text, const char **problem)
{
	HsJsonParse parse = hs_json_parse(text, strlen(text));
	HsFilter   *filter = palloc0(sizeof(HsFilter));
	const char **names;

	if (hs_json_type(parse.root) != HS_JSON_OBJECT)
	{
		*problem = "filters must be a JSON object with a member for each property";
		return NULL;
	}
	filter->n = hs_json_names(parse.root, &names);
	filter->conditions = palloc0(sizeof(Condition) * Max(filter->n, 1));
	for (int i = 0; i < filter->n; i++)
	{
		Condition  *condition = &filter->conditions[i];

		condition->property = names[i];
		if (!hs_filter_is_property_name(names[i]))
		{
			*problem = psprintf("\"%s\" cannot be a property's name", names[i]);
			return NULL;
		}
		if (!parse_condition(condition, hs_json_member(parse.root, names[i])))
		{
			*problem = psprintf("the filter on \"%s\" must be a value, null, an array of them, or {\"not\": ...}",
								names[i]);
			return NULL;
		}
	}
	return filter;
}

/*
 * The names (char *) of the properties that decide.
 */
List *
hs_filter_properties(const HsFilter *filter)
{
	List	   *names = NIL;

	for (int i = 0; i < filter->n; i++)
		names = lappend(names, pstrdup(filter->conditions[i].property));
	return names;
}

/* A value's text, NULL for none. */
static const char *
plain_text(const HsJson *value)
{
	const char *text = hs_json_text(value);

	return text != NULL && text[0] != '\0' ? text : NULL;
}

/* Whether a property's text, NULL for none, is the one a filter names. */
static bool
is_value(const char *text, const HsJson *wanted)
{
	const char *other = plain_text(wanted);

	if (text == NULL || other == NULL)
		return text == other;
	return strcmp(text, other) == 0;
}

/* Whether a property's text is among those of a condition. */
static bool
is_among(const char *text, const HsJson *values)
{
	if (hs_json_type(values) != HS_JSON_ARRAY)
		return is_value(text, values);
	for (int i = 0; i < hs_json_length(values); i++)
	{
		if (is_value(text, hs_json_element(values, i)))
			return true;
	}
	return false;
}

/*
 * Whether a record with these properties is kept.  If it is not, `known` says
 * whether the property that decided came with it at all.
 */
bool
hs_filter_keeps(const HsFilter *filter, const HsJson *properties, bool *known)
{
	for (int i = 0; i < filter->n; i++)
	{
		const Condition *c = &filter->conditions[i];
		const char *text = plain_text(hs_json_member(properties, c->property));

		if (is_among(text, c->values) == c->negated)
		{
			*known = hs_json_has(properties, c->property);
			return false;
		}
	}
	return true;
}
