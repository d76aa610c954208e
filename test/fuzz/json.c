/*
 * Whatever a document says, json.c parses it or refuses it: it accepts all
 * JSON that PostgreSQL accepts and jsonb could hold, every text it hands out
 * can be stored, what it writes is JSON that reads the same again, and so is
 * the jsonb it makes.
 *
 * links: json.c
 */
#include "server.h"

#include "../../src/json.h"

/* Deeper ones are refused by design. */
#define SAFE_DEPTH 1000

#define CLIPPED 7

#define LONGEST_NUMBER 100

/* The names of an object's members lead to their values. */
static void
walk_object(const HsJson *object)
{
	const char **names;
	int			n = hs_json_names(object, &names);

	for (int i = 0; i < n; i++)
	{
		REQUIRE(server_can_hold(names[i]));
		REQUIRE(hs_json_has(object, names[i]));
	}
}

/* Getters agree with each other. */
static void
read_scalar(const HsJson *value)
{
	const char *text = hs_json_text(value);
	int64		number;
	TimestampTz time;
	bool		truth;

	REQUIRE((text == NULL) == (hs_json_type(value) == HS_JSON_NULL));
	if (text == NULL)
		return;
	REQUIRE(server_can_hold(text));
	REQUIRE(server_can_hold(hs_json_clip(text, CLIPPED)));
	REQUIRE(strlen(hs_json_clip(text, CLIPPED)) <= CLIPPED);
	if (hs_json_int64(value, &number))
		REQUIRE(strtoll(text, NULL, 10) == number);
	if (hs_json_bool(value, &truth))
		REQUIRE(strcmp(text, truth ? "true" : "false") == 0);
	if (hs_json_timestamp(value, &time))
	{
		REQUIRE(IS_VALID_TIMESTAMP(time));
		(void) hs_json_epoch_ms(time);
	}
}

static void
walk(const HsJson *value)
{
	const char **names;

	if (hs_json_type(value) == HS_JSON_OBJECT)
	{
		int			n = hs_json_names(value, &names);

		walk_object(value);
		for (int i = 0; i < n; i++)
			walk(hs_json_member(value, names[i]));
	}
	else if (hs_json_type(value) == HS_JSON_ARRAY)
	{
		for (int i = 0; i < hs_json_length(value); i++)
			walk(hs_json_element(value, i));
	}
	else
		read_scalar(value);
}

static char *
written(const HsJson *value)
{
	StringInfoData out;

	initStringInfo(&out);
	hs_json_append(&out, value);
	return out.data;
}

/* PostgreSQL's numeric holds far more, but takes its time for it. */
static void
check_numbers(const HsJson *value)
{
	const char **names;
	int			n = hs_json_names(value, &names);

	for (int i = 0; i < n; i++)
		check_numbers(hs_json_member(value, names[i]));
	for (int i = 0; i < hs_json_length(value); i++)
		check_numbers(hs_json_element(value, i));
	if (hs_json_type(value) == HS_JSON_NUMBER)
	{
		const char *text = hs_json_text(value);
		const char *exponent = strpbrk(text, "eE");

		REQUIRE(strlen(text) <= LONGEST_NUMBER);
		REQUIRE(exponent == NULL || labs(strtol(exponent + 1, NULL, 10)) < 1000);
	}
}

/* What is written can be stored as jsonb, and reads as what it was. */
static void
write_and_read(const HsJson *root)
{
	char	   *text = written(root);
	HsJsonParse again = hs_json_parse(text, strlen(text));

	REQUIRE(server_can_hold(text));
	REQUIRE(server_reads_json(text, strlen(text)));
	REQUIRE(again.error == NULL);
	REQUIRE(again.replaced == 0);
	check_numbers(again.root);
	REQUIRE(strcmp(written(again.root), text) == 0);
}

/* Whether two documents say the same, whatever the order of members. */
static bool
is_same(const HsJson *a, const HsJson *b)
{
	const char **names;
	int			n = hs_json_names(a, &names);
	bool		same = hs_json_type(a) == hs_json_type(b) &&
		hs_json_length(a) == hs_json_length(b) &&
		n == hs_json_names(b, &names);

	for (int i = 0; same && i < n; i++)
		same = hs_json_has(a, names[i]) &&
			is_same(hs_json_member(a, names[i]), hs_json_member(b, names[i]));
	for (int i = 0; same && i < hs_json_length(a); i++)
		same = is_same(hs_json_element(a, i), hs_json_element(b, i));
	if (!same || hs_json_text(a) == NULL)
		return same;
	return strcmp(hs_json_text(a), hs_json_text(b)) == 0;
}

/* The stand-in for jsonb is its text. */
static const char *
as_jsonb(const HsJson *object, bool with_nulls, HsJsonOrder *order)
{
	return DatumGetPointer(hs_json_object_to_jsonb(object, with_nulls, order));
}

/*
 * The jsonb made is valid, whichever object was there before, says what the
 * object does, and is the same as that of what is written as text.
 */
static void
make_jsonb(const HsJson *root)
{
	HsJsonOrder *order = hs_json_new_order();
	const char *text = as_jsonb(root, true, order);
	char	   *source = written(root);
	const HsJson *again = hs_json_parse(source, strlen(source)).root;

	REQUIRE(server_can_hold(text));
	REQUIRE(server_reads_json(text, strlen(text)));
	REQUIRE(strcmp(as_jsonb(again, true, hs_json_new_order()), text) == 0);
	if (hs_json_type(root) == HS_JSON_OBJECT)
	{
		const char **names;
		int			n = hs_json_names(root, &names);

		REQUIRE(is_same(hs_json_parse(text, strlen(text)).root, again));
		for (int i = 0; i < n; i++)
			(void) as_jsonb(hs_json_member(root, names[i]), i % 2 == 0, order);
	}
	REQUIRE(strcmp(as_jsonb(root, true, order), text) == 0);
	(void) as_jsonb(root, false, order);
}

/* More brackets than that may be too deep. */
static bool
is_shallow(const char *data, size_t size)
{
	int			brackets = 0;

	for (size_t i = 0; i < size; i++)
		brackets += data[i] == '[' || data[i] == '{';
	return brackets < SAFE_DEPTH;
}

void
fuzz_input(const char *data, size_t size)
{
	HsJsonParse parse = hs_json_parse(data, size);

	REQUIRE(parse.error == NULL || parse.root == NULL);
	if (parse.error == NULL)
	{
		walk(parse.root);
		write_and_read(parse.root);
		make_jsonb(parse.root);
	}
	else if (is_shallow(data, size))
	{
		REQUIRE(server_can_hold(parse.error));
		REQUIRE(!server_reads_json(data, size));
	}
}
