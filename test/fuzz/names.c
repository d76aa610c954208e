/*
 * Whatever somebody writes as a property's name, a filter or a cursor, it
 * stays one name: in a URL nothing of it means anything else, in a body it is
 * one JSON string, and a filter and its negation never both keep a record.
 *
 * links: json.c filter.c
 */
#include "answer.h"

#include "../../src/filter.h"

#define LIST_PREFIX "?limit=100&archived=true&properties=known,"

static bool
is_unreserved(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
		(c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
}

static int
hex_value(char c)
{
	return c >= 'A' ? c - 'A' + 10 : c - '0';
}

/* What a server reads where `escaped` stands, until something unescaped. */
static const char *
unescape(const char *escaped, const char **rest)
{
	StringInfoData text;

	initStringInfo(&text);
	for (;;)
	{
		if (escaped[0] == '%')
		{
			appendStringInfoChar(&text, (char) (hex_value(escaped[1]) * 16 + hex_value(escaped[2])));
			escaped += 3;
		}
		else if (is_unreserved(escaped[0]))
			appendStringInfoChar(&text, *escaped++);
		else
			break;
	}
	*rest = escaped;
	return text.data;
}

/* In the query of a list: the second property, and again the cursor. */
static void
check_query(char *text)
{
	char	   *query = list_query(lappend(list_make1("known"), text), true, text);
	const char *rest;

	REQUIRE(strncmp(query, LIST_PREFIX, strlen(LIST_PREFIX)) == 0);
	REQUIRE(strcmp(unescape(query + strlen(LIST_PREFIX), &rest), text) == 0);
	REQUIRE(strncmp(rest, "&after=", strlen("&after=")) == 0);
	REQUIRE(strcmp(unescape(rest + strlen("&after="), &rest), text) == 0);
	REQUIRE(*rest == '\0');
}

/* In the body of a search: the property of a filter, and one asked for. */
static void
check_body(char *text)
{
	HsApiSearch search = {
		.filter_property = text,
		.from = 1,
		.properties = list_make1(text)
	};
	char	   *body = search_body(&search);
	const HsJson *root = hs_json_parse(body, strlen(body)).root;
	const HsJson *group = hs_json_element(hs_json_member(root, "filterGroups"), 0);
	const HsJson *filter = hs_json_element(hs_json_member(group, "filters"), 0);

	REQUIRE(server_reads_json(body, strlen(body)));
	REQUIRE(strcmp(hs_json_text(hs_json_member(filter, "propertyName")), text) == 0);
	REQUIRE(strcmp(hs_json_text(hs_json_element(hs_json_member(root, "properties"), 0)),
				   text) == 0);
	REQUIRE(hs_json_length(hs_json_member(root, "properties")) == 1);
}

/* Whether a filter on property p keeps a record of which p has this value. */
static bool
keeps(const char *condition, const char *value)
{
	const char *problem = NULL;
	char	   *text = psprintf("{\"p\":%s}", condition);
	char	   *record = psprintf("{\"p\":%s}", value);
	HsFilter   *filter = hs_filter_parse(text, &problem);
	bool		known = true;

	REQUIRE(filter != NULL);
	REQUIRE(list_length(hs_filter_properties(filter)) == 1);
	return hs_filter_keeps(filter, hs_json_parse(record, strlen(record)).root,
						   &known);
}

/*
 * A condition keeps exactly what its negation does not, and among one value is
 * what is that value.
 */
static void
check_condition(const char *text)
{
	static const char *const values[] = {"null", "\"\"", "1", "\"1\"", "\"a\"", "true"};
	HsJsonParse parse = hs_json_parse(text, strlen(text));
	const char *problem;

	if (parse.error != NULL || hs_json_type(parse.root) == HS_JSON_OBJECT ||
		!server_reads_json(text, strlen(text)) ||
		hs_filter_parse(psprintf("{\"p\":%s}", text), &problem) == NULL)
		return;
	for (size_t i = 0; i < lengthof(values); i++)
	{
		bool		kept = keeps(text, values[i]);

		REQUIRE(kept != keeps(psprintf("{\"not\":%s}", text), values[i]));
		if (hs_json_type(parse.root) != HS_JSON_ARRAY)
			REQUIRE(kept == keeps(psprintf("[%s]", text), values[i]));
	}
	if (hs_json_type(parse.root) != HS_JSON_ARRAY)
		REQUIRE(keeps(text, text));
}

/* Filters that are accepted name nothing but properties. */
static void
check_filters(const char *text)
{
	const char *problem = NULL;
	HsFilter   *filter = hs_filter_parse(text, &problem);
	bool		known;
	ListCell   *lc;

	if (filter == NULL)
	{
		REQUIRE(problem != NULL && server_can_hold(problem));
		return;
	}
	foreach(lc, hs_filter_properties(filter))
		REQUIRE(hs_filter_is_property_name(lfirst(lc)));
	(void) hs_filter_keeps(filter, hs_json_parse("{}", 2).root, &known);
}

void
fuzz_input(const char *data, size_t size)
{
	char	   *text = pnstrdup(data, size);

	if (!server_can_hold(text))
		return;
	if (hs_filter_is_property_name(text))
		REQUIRE(strcmp(hs_http_escape(text), text) == 0 && strlen(text) <= 100);
	check_query(text);
	check_body(text);
	check_filters(text);
	check_condition(text);
}
