/*-------------------------------------------------------------------------
 *
 * json.c
 *	  JSON documents that belong to a memory context, and typed getters.
 *
 * The only file that knows json-c.  It must not include utils/builtins.h,
 * which declares a function of the name of json-c's type json_object.
 *
 * What comes from a remote peer is made safe before json-c sees it, so that
 * every text handed out can be stored in PostgreSQL: no NUL, no lone
 * surrogate, no broken UTF-8.  json-c accepts a little more than JSON even
 * when strict (single-quoted names, NaN, Infinity, leading zeros); such
 * numbers are written out as strings.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include <json-c/json.h>

#include "common/int.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "json.h"

/* See tokener_flags(). */
#define FIRST_ODD_VERSION ((0 << 16) | (17 << 8))

/* Deeper documents are refused; json-c frees and we write by recursion. */
#define MAX_DEPTH 1024

/* A repaired copy may be three times as long and must still fit. */
#define MAX_BYTES (MaxAllocSize / 3 - 1)

/* Numbers longer than this, or with a longer exponent, become strings. */
#define MAX_NUMBER_LENGTH 100
#define MAX_EXPONENT_DIGITS 3

/*
 * json-c clamps integers beyond 64 bits.  Those with so many digits that it
 * might are given an exponent of zero before parsing: json-c then takes them
 * for doubles, whose source text it keeps.
 */
#define LONG_INTEGER_DIGITS 19
#define LONG_INTEGER_MARK "e0"

#define REPLACEMENT_UTF8 "\xEF\xBF\xBD"
#define REPLACEMENT_ESCAPE "\\ufffd"
#define UNICODE_ESCAPE_LENGTH 6 /* backslash, u, four digits */

/* The text to parse: the caller's own until a repair makes a copy. */
typedef struct SafeText
{
	const char *data;
	size_t		len;
	char	   *copy;			/* NULL, or where data points */
	int64		replaced;
} SafeText;

/* A document "null" has no json-c object: this stands for it. */
static const char null_document = 0;

#define NULL_DOCUMENT ((const HsJson *) &null_document)

static void append_value(StringInfo out, json_object *value);

static inline json_object *
unwrap(const HsJson *value)
{
	return value == NULL_DOCUMENT ? NULL : (json_object *) value;
}

static inline const HsJson *
wrap(json_object *value)
{
	return (const HsJson *) value;
}

static inline bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static inline bool
is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/*
 * Making text safe.
 */

/* Makes `copy`, palloc'd, the text; an earlier copy is freed. */
static void
adopt_copy(SafeText *text, char *copy, size_t len)
{
	Assert(copy != NULL);
	if (text->copy != NULL)
		pfree(text->copy);
	text->copy = copy;
	text->data = copy;
	text->len = len;
}

/*
 * Replaces each NUL byte and each byte that is not part of valid UTF-8 by
 * U+FFFD.  pg_encoding_verifymbstr stops at both.
 */
static void
repair_encoding(SafeText *text)
{
	const char *rest = text->data;
	int			left = (int) text->len;
	int			valid = pg_encoding_verifymbstr(PG_UTF8, rest, left);
	StringInfoData copy;

	if (valid == left)
		return;

	initStringInfo(&copy);
	while (valid < left)
	{
		appendBinaryStringInfo(&copy, rest, valid);
		appendStringInfoString(&copy, REPLACEMENT_UTF8);
		text->replaced++;

		rest += valid + 1;
		left -= valid + 1;
		valid = pg_encoding_verifymbstr(PG_UTF8, rest, left);
	}
	appendBinaryStringInfo(&copy, rest, left);
	adopt_copy(text, copy.data, copy.len);
}

/* The value of "\uXXXX" at `p`, or -1 if there is no such escape. */
static int
unicode_escape(const char *p, const char *end)
{
	int			unit = 0;

	if (end - p < UNICODE_ESCAPE_LENGTH || p[0] != '\\' || p[1] != 'u')
		return -1;
	for (int i = 2; i < UNICODE_ESCAPE_LENGTH; i++)
	{
		char		c = p[i];

		if (is_digit(c))
			unit = unit * 16 + (c - '0');
		else if (c >= 'a' && c <= 'f')
			unit = unit * 16 + (c - 'a' + 10);
		else if (c >= 'A' && c <= 'F')
			unit = unit * 16 + (c - 'A' + 10);
		else
			return -1;
	}
	return unit;
}

/*
 * The next escape PostgreSQL cannot hold, NUL or half a surrogate pair, or
 * NULL.  `p` must not be inside an escape.  Malformed escapes are left to
 * json-c, which refuses them.
 */
static char *
find_bad_escape(const char *p, const char *end)
{
	while (p < end && (p = memchr(p, '\\', end - p)) != NULL)
	{
		int			unit = unicode_escape(p, end);

		if (unit < 0)
			p += 2;
		else if (unit == 0 || is_utf16_surrogate_second(unit))
			return unconstify(char *, p);
		else if (!is_utf16_surrogate_first(unit))
			p += UNICODE_ESCAPE_LENGTH;
		else
		{
			int			second = unicode_escape(p + UNICODE_ESCAPE_LENGTH, end);

			if (second < 0 || !is_utf16_surrogate_second(second))
				return unconstify(char *, p);
			p += 2 * UNICODE_ESCAPE_LENGTH;
		}
	}
	return NULL;
}

/* Replaces escapes that PostgreSQL cannot hold by that of U+FFFD. */
static void
repair_escapes(SafeText *text)
{
	char	   *bad = find_bad_escape(text->data, text->data + text->len);

	if (bad == NULL)
		return;

	if (text->copy == NULL)
	{
		size_t		offset = bad - text->data;
		char	   *copy = palloc(text->len);

		memcpy(copy, text->data, text->len);
		adopt_copy(text, copy, text->len);
		bad = copy + offset;
	}
	while (bad != NULL)
	{
		memcpy(bad, REPLACEMENT_ESCAPE, UNICODE_ESCAPE_LENGTH);
		text->replaced++;
		bad = find_bad_escape(bad + UNICODE_ESCAPE_LENGTH,
							  text->data + text->len);
	}
}

/*
 * Is there a run of digits long enough to be clamped, even inside a string?
 * It cannot avoid every LONG_INTEGER_DIGITS-th byte, so only those are read.
 */
static bool
has_long_digit_run(const char *data, size_t len)
{
	for (size_t i = LONG_INTEGER_DIGITS - 1; i < len; i += LONG_INTEGER_DIGITS)
	{
		size_t		first = i;
		size_t		last = i;

		if (!is_digit(data[i]))
			continue;
		while (first > 0 && is_digit(data[first - 1]))
			first--;
		while (last + 1 < len && is_digit(data[last + 1]))
			last++;
		if (last - first + 1 >= LONG_INTEGER_DIGITS)
			return true;
		i = last;
	}
	return false;
}

/* The end of the string that begins at `p`, after its closing quote. */
static const char *
skip_string(const char *p, const char *end)
{
	for (p++; p < end && *p != '"'; p++)
	{
		if (*p == '\\')
			p++;
	}
	return p < end ? p + 1 : end;
}

/* The end of the number, or what looks like one, that begins at `p`. */
static const char *
skip_number(const char *p, const char *end, bool *long_integer)
{
	const char *digits = *p == '-' ? p + 1 : p;
	const char *q = digits;

	while (q < end && is_digit(*q))
		q++;
	*long_integer = q - digits >= LONG_INTEGER_DIGITS &&
		(q == end || (*q != '.' && *q != 'e' && *q != 'E'));
	while (q < end &&
		   (is_digit(*q) || *q == '.' || *q == 'e' || *q == 'E' || *q == '+' ||
			*q == '-'))
		q++;
	return q;
}

/* Marks integers that json-c might clamp, see LONG_INTEGER_DIGITS. */
static void
mark_long_integers(SafeText *text)
{
	const char *p = text->data;
	const char *end = p + text->len;
	const char *copied = p;
	StringInfoData copy;

	if (!has_long_digit_run(text->data, text->len))
		return;

	initStringInfo(&copy);
	enlargeStringInfo(&copy, (int) text->len);
	while (p < end)
	{
		bool		long_integer = false;

		if (*p == '"')
			p = skip_string(p, end);
		else if (*p == '-' || is_digit(*p))
			p = skip_number(p, end, &long_integer);
		else
			p++;
		if (long_integer)
		{
			appendBinaryStringInfo(&copy, copied, p - copied);
			appendStringInfoString(&copy, LONG_INTEGER_MARK);
			copied = p;
		}
	}
	appendBinaryStringInfo(&copy, copied, end - copied);
	adopt_copy(text, copy.data, copy.len);
}

/*
 * Parsing.
 */

/* MemoryContextCallback: frees the document with its memory context. */
static void
free_document(void *arg)
{
	json_object_put((json_object *) arg);
}

static const char *
describe_error(enum json_tokener_error error, size_t offset)
{
	if (error == json_tokener_error_depth)
		return psprintf("more than %d levels deep at byte %zu", MAX_DEPTH,
						offset);
	if (error == json_tokener_error_parse_eof || error == json_tokener_continue)
		return psprintf("unexpected end of document after byte %zu", offset);
	return psprintf("%s at byte %zu", json_tokener_error_desc(error), offset);
}

/*
 * From 0.17 on the strict parser takes bytes above 0x7f for control
 * characters where char is signed, and refuses all text but ASCII.  The
 * library loaded decides, not the one compiled against.
 */
static int
tokener_flags(void)
{
	return json_c_version_num() >= FIRST_ODD_VERSION ? 0
		: JSON_TOKENER_STRICT;
}

/*
 * Lets json-c parse one document.  Returns it and leaves *error NULL, or
 * sets *error.  Only the text of an error is palloc'd, after json-c's own
 * memory has been released, so nothing leaks.
 */
static json_object *
run_tokener(const SafeText *text, const char **error)
{
	json_tokener *tokener = json_tokener_new_ex(MAX_DEPTH);
	json_object *root;
	enum json_tokener_error status;
	size_t		offset;

	*error = "out of memory";
	if (tokener == NULL)
		return NULL;

	json_tokener_set_flags(tokener, tokener_flags());
	root = json_tokener_parse_ex(tokener, text->data, (int) text->len);
	status = json_tokener_get_error(tokener);
	offset = json_tokener_get_parse_end(tokener);
	if (status == json_tokener_continue)
	{
		/* Only a NUL byte tells the end of a number, true, false or null. */
		root = json_tokener_parse_ex(tokener, "", 1);
		status = json_tokener_get_error(tokener);
		offset = text->len;
	}
	json_tokener_free(tokener);

	if (status != json_tokener_success)
	{
		json_object_put(root);
		*error = describe_error(status, offset);
		return NULL;
	}
	/* What is not strict stops at the end of the value. */
	while (offset < text->len && is_space(text->data[offset]))
		offset++;
	if (offset < text->len)
	{
		json_object_put(root);
		*error = psprintf("unexpected text at byte %zu", offset);
		return NULL;
	}
	*error = NULL;
	return root;
}

/*
 * The document of `len` bytes at `text`, which need not end with NUL.  It is
 * owned by CurrentMemoryContext and freed when that is reset.  Never throws
 * because of what the text says: root is NULL then and error tells why, with
 * a byte offset (into the repaired text) but without any of the content.
 * Throws when PostgreSQL is out of memory.  Each byte of broken UTF-8 counts
 * as one replaced character.
 */
HsJsonParse
hs_json_parse(const char *text, size_t len)
{
	HsJsonParse parse = {0};
	SafeText	safe = {.data = text, .len = len};
	MemoryContextCallback *callback;
	json_object *root;
	size_t		start = 0;

	while (start < len && is_space(text[start]))
		start++;
	if (start == len)
		parse.error = "empty document";
	else if (len > MAX_BYTES)
		parse.error = "document too large";
	if (parse.error != NULL)
		return parse;

	callback = palloc0(sizeof(MemoryContextCallback));
	repair_encoding(&safe);
	repair_escapes(&safe);
	mark_long_integers(&safe);
	parse.replaced = safe.replaced;

	root = run_tokener(&safe, &parse.error);
	if (root != NULL)
	{
		callback->func = free_document;
		callback->arg = root;
		MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
		parse.root = wrap(root);
	}
	else if (parse.error == NULL && pg_tolower((unsigned char) text[start]) == 'n')
		parse.root = NULL_DOCUMENT;
	else if (parse.error == NULL)
		parse.error = "out of memory";

	if (safe.copy != NULL)
		pfree(safe.copy);
	return parse;
}

/*
 * Getters.  None of them throws, except that a text which must be made runs
 * out of memory; NULL is a JSON null everywhere.
 */

/* The type of a value.  NaN and Infinity, unknown to JSON, are strings. */
HsJsonType
hs_json_type(const HsJson *value)
{
	json_object *object = unwrap(value);

	switch (json_object_get_type(object))
	{
		case json_type_boolean:
			return HS_JSON_BOOLEAN;
		case json_type_int:
			return HS_JSON_NUMBER;
		case json_type_double:
			return json_object_get_userdata(object) != NULL ? HS_JSON_NUMBER
				: HS_JSON_STRING;
		case json_type_string:
			return HS_JSON_STRING;
		case json_type_array:
			return HS_JSON_ARRAY;
		case json_type_object:
			return HS_JSON_OBJECT;
		case json_type_null:
			break;
	}
	return HS_JSON_NULL;
}

/* The member of that name, NULL if absent, null or not in an object. */
const HsJson *
hs_json_member(const HsJson *object, const char *name)
{
	json_object *container = unwrap(object);
	json_object *value;

	if (!json_object_is_type(container, json_type_object) ||
		!json_object_object_get_ex(container, name, &value))
		return NULL;
	return wrap(value);
}

/* Whether an object has a member of that name, be it null.  Never throws. */
bool
hs_json_has(const HsJson *object, const char *name)
{
	json_object *value = unwrap(object);

	return json_object_is_type(value, json_type_object) &&
		json_object_object_get_ex(value, name, NULL);
}

/* The member `second` of the member `first`, NULL if there is none. */
const HsJson *
hs_json_path(const HsJson *object, const char *first, const char *second)
{
	return hs_json_member(hs_json_member(object, first), second);
}

/* The number of elements, 0 if not an array. */
int
hs_json_length(const HsJson *array)
{
	json_object *container = unwrap(array);

	if (!json_object_is_type(container, json_type_array))
		return 0;
	return (int) json_object_array_length(container);
}

/* The element at an index from 0, NULL if null or out of range. */
const HsJson *
hs_json_element(const HsJson *array, int index)
{
	if (index < 0 || index >= hs_json_length(array))
		return NULL;
	return wrap(json_object_array_get_idx(unwrap(array), index));
}

/* Collects the names of an object's members and returns how many there are. */
static int
collect_names(json_object *object, const char **names)
{
	int			n = 0;

	/* The macro declares `name` and `value`. */
	json_object_object_foreach(object, name, value)
	{
		(void) value;
		names[n++] = name;
	}
	return n;
}

/*
 * The names of an object's members, in `names`, an array in the current
 * memory context; the names belong to the document.  Returns how many there
 * are, 0 if it is no object.
 */
int
hs_json_names(const HsJson *object, const char ***names)
{
	json_object *container = unwrap(object);

	*names = NULL;
	if (!json_object_is_type(container, json_type_object))
		return 0;
	*names = palloc(sizeof(char *) *
					Max(json_object_object_length(container), 1));
	return collect_names(container, *names);
}

/* The source text of a number, or what NaN and the infinities are called. */
static const char *
double_text(json_object *number)
{
	const char *source = json_object_get_userdata(number);
	double		d = json_object_get_double(number);
	const char *digits;
	size_t		ndigits;

	if (source == NULL)
		return isnan(d) ? "NaN" : d < 0 ? "-Infinity" : "Infinity";

	digits = *source == '-' ? source + 1 : source;
	ndigits = strspn(digits, "0123456789");
	if (ndigits >= LONG_INTEGER_DIGITS &&
		strcmp(digits + ndigits, LONG_INTEGER_MARK) == 0)
		return pnstrdup(source, digits + ndigits - source);
	return source;
}

/*
 * A string's text, a number's as the source has it, "true" or "false"; NULL
 * for null, arrays and objects.  It belongs to the document, or is constant,
 * or (integers) was palloc'd in CurrentMemoryContext.
 */
const char *
hs_json_text(const HsJson *value)
{
	json_object *object = unwrap(value);

	switch (json_object_get_type(object))
	{
		case json_type_boolean:
			return json_object_get_boolean(object) ? "true" : "false";
		case json_type_int:
			return psprintf(INT64_FORMAT,
							(int64) json_object_get_int64(object));
		case json_type_double:
			return double_text(object);
		case json_type_string:
			return json_object_get_string(object);
		default:
			return NULL;
	}
}

/* Reads a boolean or the strings "true" and "false"; else returns false. */
bool
hs_json_bool(const HsJson *value, bool *result)
{
	json_object *object = unwrap(value);
	const char *text;

	if (json_object_is_type(object, json_type_boolean))
	{
		*result = json_object_get_boolean(object);
		return true;
	}
	if (!json_object_is_type(object, json_type_string))
		return false;

	text = json_object_get_string(object);
	if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
		return false;
	*result = text[0] == 't';
	return true;
}

/* Reads an optional sign and digits, nothing else, in the range of int64. */
static bool
parse_int64(const char *text, int64 *result)
{
	bool		negative = *text == '-';
	int64		sum = 0;

	if (*text == '-' || *text == '+')
		text++;
	if (*text == '\0')
		return false;

	/* Sums up negative numbers: there is one more of them. */
	for (; *text != '\0'; text++)
	{
		if (!is_digit(*text) || pg_mul_s64_overflow(sum, 10, &sum) ||
			pg_sub_s64_overflow(sum, *text - '0', &sum))
			return false;
	}
	if (!negative && sum == PG_INT64_MIN)
		return false;
	*result = negative ? sum : -sum;
	return true;
}

/*
 * Reads an integer, or a string of an optional sign and digits.  Returns
 * false, and leaves *result alone, for anything else, fractions and
 * exponents included, and beyond 64 bits.
 */
bool
hs_json_int64(const HsJson *value, int64 *result)
{
	json_object *object = unwrap(value);

	switch (json_object_get_type(object))
	{
		case json_type_int:
			*result = json_object_get_int64(object);
			return true;
		case json_type_double:
			return parse_int64(double_text(object), result);
		case json_type_string:
			return parse_int64(json_object_get_string(object), result);
		default:
			return false;
	}
}

/*
 * Timestamps.  The parsers advance *p over what they read.
 */

/* Reads exactly `count` digits as a number between `low` and `high`. */
static bool
parse_digits(const char **p, int count, int low, int high, int *result)
{
	*result = 0;
	for (int i = 0; i < count; i++)
	{
		if (!is_digit(**p))
			return false;
		*result = *result * 10 + (**p - '0');
		(*p)++;
	}
	return *result >= low && *result <= high;
}

static bool
parse_char(const char **p, char c)
{
	if (**p != c)
		return false;
	(*p)++;
	return true;
}

/* YYYY-MM-DD, as midnight UTC. */
static bool
parse_date(const char **p, TimestampTz *result)
{
	int			year;
	int			month;
	int			day;

	if (!parse_digits(p, 4, 1, 9999, &year) || !parse_char(p, '-') ||
		!parse_digits(p, 2, 1, MONTHS_PER_YEAR, &month) ||
		!parse_char(p, '-') ||
		!parse_digits(p, 2, 1, day_tab[isleap(year)][month - 1], &day))
		return false;
	*result = (date2j(year, month, day) - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY;
	return true;
}

/* HH:MM[:SS[.fraction]], cut to microseconds; a leap second is allowed. */
static bool
parse_time(const char **p, int64 *result)
{
	int			hour;
	int			minute;
	int			second = 0;
	int64		unit = USECS_PER_SEC;

	if (!parse_digits(p, 2, 0, HOURS_PER_DAY - 1, &hour) ||
		!parse_char(p, ':') ||
		!parse_digits(p, 2, 0, MINS_PER_HOUR - 1, &minute))
		return false;
	if (parse_char(p, ':') && !parse_digits(p, 2, 0, SECS_PER_MINUTE, &second))
		return false;
	*result = hour * USECS_PER_HOUR + minute * USECS_PER_MINUTE +
		second * USECS_PER_SEC;

	if (!parse_char(p, '.'))
		return true;
	if (!is_digit(**p))
		return false;
	for (; is_digit(**p); (*p)++)
	{
		unit /= 10;
		*result += (**p - '0') * unit;
	}
	return true;
}

/* Z, +HH, +HHMM or +HH:MM, as distance from UTC; no zone at all is UTC. */
static bool
parse_zone(const char **p, int64 *result)
{
	bool		west = **p == '-';
	int			hour;
	int			minute = 0;

	*result = 0;
	if (**p == '\0' || parse_char(p, 'Z') || parse_char(p, 'z'))
		return true;
	if (!parse_char(p, '+') && !parse_char(p, '-'))
		return false;
	if (!parse_digits(p, 2, 0, MAX_TZDISP_HOUR, &hour))
		return false;
	if ((parse_char(p, ':') || **p != '\0') &&
		!parse_digits(p, 2, 0, MINS_PER_HOUR - 1, &minute))
		return false;
	*result = hour * USECS_PER_HOUR + minute * USECS_PER_MINUTE;
	if (west)
		*result = -*result;
	return true;
}

static bool
parse_iso(const char *p, TimestampTz *result)
{
	TimestampTz date;
	int64		time = 0;
	int64		zone = 0;

	if (!parse_date(&p, &date))
		return false;
	if (parse_char(&p, 'T') || parse_char(&p, 't') || parse_char(&p, ' '))
	{
		if (!parse_time(&p, &time) || !parse_zone(&p, &zone))
			return false;
	}
	if (*p != '\0')
		return false;
	*result = date + time - zone;
	return IS_VALID_TIMESTAMP(*result);
}

static bool
parse_epoch_ms(int64 ms, TimestampTz *result)
{
	const int64 epoch = (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
		USECS_PER_DAY;

	return !pg_mul_s64_overflow(ms, 1000, result) &&
		!pg_sub_s64_overflow(*result, epoch, result) &&
		IS_VALID_TIMESTAMP(*result);
}

/*
 * Reads milliseconds since 1970 (an integer, or a string of digits) or ISO
 * 8601 text: a date, alone or with a time and a zone.  What has no zone is
 * UTC.  Returns false, without throwing, for anything else and out of the
 * range of timestamptz; *result is undefined then.
 */
bool
hs_json_timestamp(const HsJson *value, TimestampTz *result)
{
	json_object *object = unwrap(value);
	int64		ms;

	if (hs_json_int64(value, &ms))
		return parse_epoch_ms(ms, result);
	return json_object_is_type(object, json_type_string) &&
		parse_iso(json_object_get_string(object), result);
}

/*
 * Writing.
 */

static void
append_escaped_char(StringInfo out, unsigned char c)
{
	switch (c)
	{
		case '"':
			appendStringInfoString(out, "\\\"");
			break;
		case '\\':
			appendStringInfoString(out, "\\\\");
			break;
		case '\b':
			appendStringInfoString(out, "\\b");
			break;
		case '\f':
			appendStringInfoString(out, "\\f");
			break;
		case '\n':
			appendStringInfoString(out, "\\n");
			break;
		case '\r':
			appendStringInfoString(out, "\\r");
			break;
		case '\t':
			appendStringInfoString(out, "\\t");
			break;
		default:
			appendStringInfo(out, "\\u%04x", c);
	}
}

static inline bool
needs_escape(char c)
{
	return (unsigned char) c < ' ' || c == '"' || c == '\\';
}

/* Appends text of that length as a JSON string. */
static void
append_text(StringInfo out, const char *text, size_t len)
{
	const char *end = text + len;

	appendStringInfoCharMacro(out, '"');
	while (text < end)
	{
		const char *p = text;

		while (p < end && !needs_escape(*p))
			p++;
		appendBinaryStringInfo(out, text, p - text);
		if (p < end)
			append_escaped_char(out, (unsigned char) *p++);
		text = p;
	}
	appendStringInfoCharMacro(out, '"');
}

/* The end of the digits at `p`, or NULL if there are none. */
static const char *
skip_digits(const char *p)
{
	size_t		ndigits = strspn(p, "0123456789");

	return ndigits > 0 ? p + ndigits : NULL;
}

/*
 * Is this a number of JSON's grammar that jsonb can hold?  The bounds on
 * length and exponent keep it far inside numeric's range.
 */
static bool
is_jsonb_number(const char *text)
{
	const char *first = *text == '-' ? text + 1 : text;
	const char *p = skip_digits(first);

	if (p == NULL || (*first == '0' && p > first + 1))
		return false;
	if (*p == '.' && (p = skip_digits(p + 1)) == NULL)
		return false;
	if (*p == 'e' || *p == 'E')
	{
		const char *exponent = p[1] == '+' || p[1] == '-' ? p + 2 : p + 1;

		p = skip_digits(exponent);
		if (p == NULL || p - exponent > MAX_EXPONENT_DIGITS)
			return false;
	}
	return *p == '\0' && p - text <= MAX_NUMBER_LENGTH;
}

static void
append_double(StringInfo out, json_object *number)
{
	const char *text = double_text(number);

	if (is_jsonb_number(text))
		appendStringInfoString(out, text);
	else
		hs_json_append_string(out, text);
}

static void
append_array(StringInfo out, json_object *array)
{
	size_t		length = json_object_array_length(array);

	appendStringInfoChar(out, '[');
	for (size_t i = 0; i < length; i++)
	{
		if (i > 0)
			appendStringInfoChar(out, ',');
		append_value(out, json_object_array_get_idx(array, i));
	}
	appendStringInfoChar(out, ']');
}

static void
append_object(StringInfo out, json_object *object)
{
	char		separator = '{';

	/* The macro declares `name` and `value`. */
	json_object_object_foreach(object, name, value)
	{
		appendStringInfoCharMacro(out, separator);
		append_text(out, name, strlen(name));
		appendStringInfoCharMacro(out, ':');
		append_value(out, value);
		separator = ',';
	}
	if (separator == '{')
		appendStringInfoChar(out, '{');
	appendStringInfoChar(out, '}');
}

/* Recursion is bounded by MAX_DEPTH. */
static void
append_value(StringInfo out, json_object *value)
{
	check_stack_depth();

	switch (json_object_get_type(value))
	{
		case json_type_null:
			appendStringInfoString(out, "null");
			break;
		case json_type_boolean:
			appendStringInfoString(out,
								   json_object_get_boolean(value) ? "true"
								   : "false");
			break;
		case json_type_int:
			appendStringInfo(out, INT64_FORMAT,
							 (int64) json_object_get_int64(value));
			break;
		case json_type_double:
			append_double(out, value);
			break;
		case json_type_string:
			append_text(out, json_object_get_string(value),
						json_object_get_string_len(value));
			break;
		case json_type_array:
			append_array(out, value);
			break;
		case json_type_object:
			append_object(out, value);
			break;
	}
}

/*
 * Appends the value as compact JSON that jsonb accepts whatever it holds:
 * numbers verbatim, but as strings where jsonb's numeric would refuse them
 * or would need very many digits.  Throws when out of memory or of StringInfo.
 */
void
hs_json_append(StringInfo out, const HsJson *value)
{
	append_value(out, unwrap(value));
}

/*
 * Appends text, UTF-8 and without NUL, as a JSON string with its quotes; NULL
 * as null.  Throws when out of memory or of StringInfo.
 */
void
hs_json_append_string(StringInfo out, const char *text)
{
	if (text == NULL)
		appendStringInfoString(out, "null");
	else
		append_text(out, text, strlen(text));
}

/*
 * Making jsonb, without writing text that it would have to read again.
 */

static void fill_value(JsonbValue *out, json_object *value);

/* A member of an object, on its way into order. */
typedef struct Member
{
	const char *name;
	size_t		len;
	json_object *value;
	int			place;			/* in the object */
} Member;

/* jsonb's order of keys. */
static int
compare_members(const void *a, const void *b)
{
	const Member *ma = a;
	const Member *mb = b;

	if (ma->len != mb->len)
		return ma->len < mb->len ? -1 : 1;
	return memcmp(ma->name, mb->name, ma->len);
}

/*
 * Room for the parts of an array or object.  That there are too many for it
 * is said as jsonb says that they take too much room.
 */
static void *
allocate_parts(size_t n, size_t size)
{
	if (n > MaxAllocSize / size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("an array or object of %zu parts is too large for jsonb",
						n)));
	return palloc(Max(n, 1) * size);
}

/* The members of an object, palloc'd. */
static Member *
list_members(json_object *object, int *n)
{
	Member	   *members = allocate_parts(json_object_object_length(object),
										 sizeof(Member));
	int			count = 0;

	/* The macro declares `name` and `value`. */
	json_object_object_foreach(object, name, value)
	{
		Member	   *member = &members[count];

		member->name = name;
		member->len = strlen(name);
		member->value = value;
		member->place = count++;
	}
	*n = count;
	return members;
}

static void
fill_string(JsonbValue *out, const char *text, size_t len)
{
	out->type = jbvString;
	out->val.string.val = unconstify(char *, text);
	out->val.string.len = (int) len;
}

/* As append_double() writes it. */
static void
fill_double(JsonbValue *out, json_object *number)
{
	const char *text = double_text(number);
	Datum		numeric;

	if (!is_jsonb_number(text))
	{
		fill_string(out, text, strlen(text));
		return;
	}
	numeric = OidFunctionCall3(F_NUMERIC_IN, CStringGetDatum(text),
							   ObjectIdGetDatum(InvalidOid),
							   Int32GetDatum(-1));
	out->type = jbvNumeric;
	out->val.numeric = DatumGetNumeric(numeric);
}

static void
fill_array(JsonbValue *out, json_object *array)
{
	size_t		length = json_object_array_length(array);

	out->type = jbvArray;
	out->val.array.rawScalar = false;
	out->val.array.nElems = (int) length;
	out->val.array.elems = allocate_parts(length, sizeof(JsonbValue));
	for (size_t i = 0; i < length; i++)
		fill_value(&out->val.array.elems[i],
				   json_object_array_get_idx(array, i));
}

/* An object without members. */
static void
fill_empty_object(JsonbValue *out, int max_pairs)
{
	out->type = jbvObject;
	out->val.object.nPairs = 0;
	out->val.object.pairs = allocate_parts(max_pairs, sizeof(JsonbPair));
}

/* Adds a member, which must come after the others in jsonb's order. */
static void
add_pair(JsonbValue *object, const Member *member)
{
	JsonbPair  *pair = &object->val.object.pairs[object->val.object.nPairs];

	fill_string(&pair->key, member->name, member->len);
	fill_value(&pair->value, member->value);
	pair->order = object->val.object.nPairs++;
}

static void
fill_object(JsonbValue *out, json_object *object)
{
	int			n;
	Member	   *members = list_members(object, &n);

	qsort(members, n, sizeof(Member), compare_members);
	fill_empty_object(out, n);
	for (int i = 0; i < n; i++)
		add_pair(out, &members[i]);
	pfree(members);
}

/* Recursion is bounded by MAX_DEPTH. */
static void
fill_value(JsonbValue *out, json_object *value)
{
	check_stack_depth();

	switch (json_object_get_type(value))
	{
		case json_type_null:
			out->type = jbvNull;
			break;
		case json_type_boolean:
			out->type = jbvBool;
			out->val.boolean = json_object_get_boolean(value);
			break;
		case json_type_int:
			out->type = jbvNumeric;
			out->val.numeric = int64_to_numeric(json_object_get_int64(value));
			break;
		case json_type_double:
			fill_double(out, value);
			break;
		case json_type_string:
			fill_string(out, json_object_get_string(value),
						json_object_get_string_len(value));
			break;
		case json_type_array:
			fill_array(out, value);
			break;
		case json_type_object:
			fill_object(out, value);
			break;
	}
}

/* Whether the known order is that of these members, too. */
static bool
order_fits(const HsJsonOrder *order, const Member *members, int n)
{
	if (order->n != n)
		return false;
	for (int i = 1; i < n; i++)
	{
		if (compare_members(&members[order->places[i - 1]],
							&members[order->places[i]]) >= 0)
			return false;
	}
	return true;
}

/* Finds out the order of members. */
static void
find_order(HsJsonOrder *order, const Member *members, int n)
{
	Member	   *sorted = palloc(sizeof(Member) * Max(n, 1));

	memcpy(sorted, members, sizeof(Member) * n);
	qsort(sorted, n, sizeof(Member), compare_members);
	if (order->places != NULL)
		pfree(order->places);
	order->places = NULL;
	order->n = 0;
	order->places = MemoryContextAlloc(order->context,
									   sizeof(int) * Max(n, 1));
	for (int i = 0; i < n; i++)
		order->places[i] = sorted[i].place;
	order->n = n;
	pfree(sorted);
}

/*
 * An order to begin with.  It lives in the current memory context.
 */
HsJsonOrder *
hs_json_new_order(void)
{
	HsJsonOrder *order = palloc0(sizeof(HsJsonOrder));

	order->context = CurrentMemoryContext;
	return order;
}

/*
 * An object, perhaps without members that are null, as jsonb in the current
 * memory context; {} for what is no object.  The values are those that
 * hs_json_append() writes.  `order` spares sorting hundreds of keys for every
 * record.  Throws what is said of the data, of the class "program limit
 * exceeded", where it is too large for jsonb.
 */
Datum
hs_json_object_to_jsonb(const HsJson *object, bool with_nulls,
						HsJsonOrder *order)
{
	json_object *container = unwrap(object);
	JsonbValue	value;
	Member	   *members;
	int			n;

	if (!json_object_is_type(container, json_type_object))
	{
		fill_empty_object(&value, 0);
		return JsonbPGetDatum(JsonbValueToJsonb(&value));
	}
	members = list_members(container, &n);
	if (!order_fits(order, members, n))
		find_order(order, members, n);
	fill_empty_object(&value, n);
	for (int i = 0; i < n; i++)
	{
		const Member *member = &members[order->places[i]];

		if (member->value != NULL || with_nulls)
			add_pair(&value, member);
	}
	return JsonbPGetDatum(JsonbValueToJsonb(&value));
}

/*
 * Milliseconds since 1970, as HubSpot counts and hs_json_timestamp() reads,
 * rounded down.  Never throws.
 */
int64
hs_json_epoch_ms(TimestampTz t)
{
	int64		offset = (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
		SECS_PER_DAY * 1000;

	return (t >= 0 ? t / 1000 : -((-t + 999) / 1000)) + offset;
}

/*
 * A copy of a text, palloc'd, of at most so many bytes, cut between
 * characters.
 */
char *
hs_json_clip(const char *text, int max_bytes)
{
	size_t		len = strlen(text);

	if (len > (size_t) max_bytes)
		len = pg_encoding_mbcliplen(PG_UTF8, text, (int) len, max_bytes);
	return pnstrdup(text, len);
}
