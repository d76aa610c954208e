/*-------------------------------------------------------------------------
 *
 * server.c
 *	  A stand-in for the server, for code that is fuzzed without one.
 *
 * Memory contexts, errors and lists behave as PostgreSQL's do, but every
 * chunk is one of malloc's, so that AddressSanitizer sees the first byte read
 * beyond it, and every context is gone after each input, so that it sees what
 * is lost.  Strings, encodings, JSON and printing are PostgreSQL's own, from
 * libpgcommon and libpgport.  A jsonb is the text of what is handed over to
 * become one, which has to be in jsonb's order.  What is missing here is made
 * by scripts/fuzz as a function that stops with its name.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sanitizer/asan_interface.h>

#include "common/jsonapi.h"
#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "server.h"

#define MESSAGES_SIZE (256 * 1024)

/* Before each chunk, poisoned while nobody looks. */
typedef struct Chunk
{
	struct Chunk *previous;
	struct Chunk *next;
	struct Context *context;
	size_t		size;
} Chunk;

typedef struct Context
{
	MemoryContextData base;		/* parent, children and callbacks are used */
	Chunk	   *chunks;
} Context;

MemoryContext CurrentMemoryContext;
MemoryContext TopMemoryContext;
sigjmp_buf *PG_exception_stack;
ErrorContextCallback *error_context_stack;
volatile sig_atomic_t InterruptPending;
int			MyProcPid = 1;
Oid			MyDatabaseId = 1;
bool		IsUnderPostmaster;
struct Latch *MyLatch;

const int	day_tab[2][13] =
	{
		{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0},
		{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0}
};

static char messages[MESSAGES_SIZE];
static size_t messages_len;
static int	level;				/* of the message being made */

/* ------------------------------------------------------------------------
 * Inputs and findings
 * ------------------------------------------------------------------------
 */

typedef struct Input
{
	const char *data;
	size_t		size;
} Input;

static void
run_input(void *arg)
{
	const Input *input = (const Input *) arg;

	fuzz_input(input->data, input->size);
}

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Input		input = {(const char *) data, size};

	messages_len = 0;
	messages[0] = '\0';
	TopMemoryContext = AllocSetContextCreateInternal(NULL, "input", 0, 0, 0);
	CurrentMemoryContext = TopMemoryContext;
	if (server_catches(run_input, &input))
		server_finding(messages, "an error that nobody caught", 0);
	MemoryContextDelete(TopMemoryContext);
	return 0;
}

void
server_finding(const char *what, const char *file, int line)
{
	fprintf(stderr, "FINDING: %s: %d: %s\n", file, line, what);
	abort();
}

const char *
server_messages(void)
{
	return messages;
}

bool
server_can_hold(const char *text)
{
	int			len = (int) strlen(text);

	return pg_encoding_verifymbstr(PG_UTF8, text, len) == len;
}

bool
server_reads_json(const char *text, size_t len)
{
#if PG_VERSION_NUM >= 170000
	JsonLexContext *lex = makeJsonLexContextCstringLen(NULL, text, len,
													   PG_UTF8, true);
#else
	JsonLexContext *lex = makeJsonLexContextCstringLen(unconstify(char *, text),
													   (int) len, PG_UTF8,
													   true);
#endif
	JsonSemAction nothing = {0};

	return pg_parse_json(lex, &nothing) == JSON_SUCCESS;
}

/* ------------------------------------------------------------------------
 * Memory
 * ------------------------------------------------------------------------
 */

static Chunk *
open_chunk(void *pointer)
{
	Chunk	   *chunk = (Chunk *) pointer - 1;

	ASAN_UNPOISON_MEMORY_REGION(chunk, sizeof(Chunk));
	return chunk;
}

static void *
close_chunk(Chunk *chunk)
{
	ASAN_POISON_MEMORY_REGION(chunk, sizeof(Chunk));
	return chunk + 1;
}

static void *
allocate(MemoryContext context, size_t size)
{
	Context    *owner = (Context *) context;
	Chunk	   *chunk;

	REQUIRE(size <= MaxAllocSize);
	chunk = malloc(sizeof(Chunk) + size);
	REQUIRE(chunk != NULL);
	chunk->previous = NULL;
	chunk->next = owner->chunks;
	chunk->context = owner;
	chunk->size = size;
	if (owner->chunks != NULL)
	{
		open_chunk(owner->chunks + 1)->previous = chunk;
		close_chunk(owner->chunks);
	}
	owner->chunks = chunk;
	return close_chunk(chunk);
}

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	return allocate(context, size);
}

void *
palloc(Size size)
{
	return allocate(CurrentMemoryContext, size);
}

void *
palloc_extended(Size size, int flags)
{
	return (flags & MCXT_ALLOC_ZERO) ? palloc0(size) : palloc(size);
}

void *
palloc0(Size size)
{
	return MemoryContextAllocZero(CurrentMemoryContext, size);
}

void *
MemoryContextAllocZero(MemoryContext context, Size size)
{
	return memset(allocate(context, size), 0, size);
}

void
pfree(void *pointer)
{
	Chunk	   *chunk = open_chunk(pointer);

	if (chunk->next != NULL)
	{
		open_chunk(chunk->next + 1)->previous = chunk->previous;
		close_chunk(chunk->next);
	}
	if (chunk->previous != NULL)
	{
		open_chunk(chunk->previous + 1)->next = chunk->next;
		close_chunk(chunk->previous);
	}
	else
		chunk->context->chunks = chunk->next;
	free(chunk);
}

void *
repalloc(void *pointer, Size size)
{
	Chunk	   *chunk = open_chunk(pointer);
	Size		old_size = chunk->size;
	MemoryContext context = &chunk->context->base;
	void	   *moved;

	close_chunk(chunk);
	moved = allocate(context, size);
	memcpy(moved, pointer, Min(old_size, size));
	pfree(pointer);
	return moved;
}

char *
MemoryContextStrdup(MemoryContext context, const char *text)
{
	size_t		len = strlen(text) + 1;

	return memcpy(allocate(context, len), text, len);
}

char *
pstrdup(const char *text)
{
	return MemoryContextStrdup(CurrentMemoryContext, text);
}

char *
pnstrdup(const char *text, Size len)
{
	char	   *copy;

	len = strnlen(text, len);
	copy = palloc(len + 1);
	memcpy(copy, text, len);
	copy[len] = '\0';
	return copy;
}

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name,
							  Size min, Size initial, Size max)
{
	Context    *context = calloc(1, sizeof(Context));

	REQUIRE(context != NULL);
	context->base.name = name;
	context->base.parent = parent;
	if (parent != NULL)
	{
		context->base.nextchild = parent->firstchild;
		if (parent->firstchild != NULL)
			parent->firstchild->prevchild = &context->base;
		parent->firstchild = &context->base;
	}
	return &context->base;
}

static void
leave_parent(MemoryContext context)
{
	if (context->prevchild != NULL)
		context->prevchild->nextchild = context->nextchild;
	else if (context->parent != NULL)
		context->parent->firstchild = context->nextchild;
	if (context->nextchild != NULL)
		context->nextchild->prevchild = context->prevchild;
}

void
MemoryContextDelete(MemoryContext context)
{
	Context    *owner = (Context *) context;

	while (context->firstchild != NULL)
		MemoryContextDelete(context->firstchild);
	while (context->reset_cbs != NULL)
	{
		MemoryContextCallback *callback = context->reset_cbs;

		context->reset_cbs = callback->next;
		callback->func(callback->arg);
	}
	while (owner->chunks != NULL)
		pfree(owner->chunks + 1);
	leave_parent(context);
	free(owner);
}

void
MemoryContextRegisterResetCallback(MemoryContext context,
								   MemoryContextCallback *callback)
{
	callback->next = context->reset_cbs;
	context->reset_cbs = callback;
}

void
check_stack_depth(void)
{
}

/* ------------------------------------------------------------------------
 * Errors
 * ------------------------------------------------------------------------
 */

bool
server_catches(void (*function)(void *arg), void *arg)
{
	sigjmp_buf	here;
	sigjmp_buf *outer = PG_exception_stack;
	volatile MemoryContext context = CurrentMemoryContext;
	volatile bool threw = false;

	if (sigsetjmp(here, 0) == 0)
	{
		PG_exception_stack = &here;
		function(arg);
	}
	else
	{
		threw = true;
		CurrentMemoryContext = context;
	}
	PG_exception_stack = outer;
	return threw;
}

void
pg_re_throw(void)
{
	siglongjmp(*PG_exception_stack, 1);
}

bool
errstart(int elevel, const char *domain)
{
	level = elevel;
	return true;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	if (level >= ERROR)
		pg_re_throw();
}

int
errcode(int sqlerrcode)
{
	return 0;
}

/* Every text counts: none of them may have what must not be told. */
static int
keep_text(const char *format, va_list args)
{
	messages_len += vsnprintf(messages + messages_len,
							  MESSAGES_SIZE - messages_len, format, args);
	REQUIRE(messages_len + 2 < MESSAGES_SIZE);
	messages[messages_len++] = '\n';
	messages[messages_len] = '\0';
	return 0;
}

#define DEFINE_TEXT(name) \
int \
name(const char *format,...) \
{ \
	va_list		args; \
\
	va_start(args, format); \
	keep_text(format, args); \
	va_end(args); \
	return 0; \
}

DEFINE_TEXT(errmsg)
DEFINE_TEXT(errmsg_internal)
DEFINE_TEXT(errdetail)
DEFINE_TEXT(errdetail_internal)
DEFINE_TEXT(errhint)

void
ProcessInterrupts(void)
{
}

/* ------------------------------------------------------------------------
 * jsonb
 * ------------------------------------------------------------------------
 */

/* Numbers are their texts. */
Numeric
int64_to_numeric(int64 number)
{
	return (Numeric) psprintf(INT64_FORMAT, number);
}

Datum
OidFunctionCall3Coll(Oid function, Oid collation, Datum text, Datum type,
					 Datum typmod)
{
	REQUIRE(function == F_NUMERIC_IN);
	return CStringGetDatum(pstrdup(DatumGetCString(text)));
}

struct varlena *
pg_detoast_datum(struct varlena *datum)
{
	return datum;
}

static void
write_string(StringInfo out, const JsonbValue *string)
{
	REQUIRE(string->type == jbvString);
	appendStringInfoChar(out, '"');
	for (int i = 0; i < string->val.string.len; i++)
	{
		unsigned char c = string->val.string.val[i];

		if (c < ' ' || c == '"' || c == '\\')
			appendStringInfo(out, "\\u%04x", c);
		else
			appendStringInfoChar(out, (char) c);
	}
	appendStringInfoChar(out, '"');
}

/* Whether a key comes before another in jsonb's order. */
static bool
comes_before(const JsonbValue *a, const JsonbValue *b)
{
	int			len = a->val.string.len;

	if (len != b->val.string.len)
		return len < b->val.string.len;
	return memcmp(a->val.string.val, b->val.string.val, len) < 0;
}

static void
write_jsonb(StringInfo out, const JsonbValue *value)
{
	if (value->type == jbvNull)
		appendStringInfoString(out, "null");
	else if (value->type == jbvBool)
		appendStringInfoString(out, value->val.boolean ? "true" : "false");
	else if (value->type == jbvNumeric)
		appendStringInfoString(out, (const char *) value->val.numeric);
	else if (value->type == jbvArray)
	{
		REQUIRE(!value->val.array.rawScalar);
		appendStringInfoChar(out, '[');
		for (int i = 0; i < value->val.array.nElems; i++)
		{
			appendStringInfoString(out, i > 0 ? "," : "");
			write_jsonb(out, &value->val.array.elems[i]);
		}
		appendStringInfoChar(out, ']');
	}
	else if (value->type == jbvObject)
	{
		const JsonbPair *pairs = value->val.object.pairs;

		appendStringInfoChar(out, '{');
		for (int i = 0; i < value->val.object.nPairs; i++)
		{
			REQUIRE(i == 0 || comes_before(&pairs[i - 1].key, &pairs[i].key));
			appendStringInfoString(out, i > 0 ? "," : "");
			write_string(out, &pairs[i].key);
			appendStringInfoChar(out, ':');
			write_jsonb(out, &pairs[i].value);
		}
		appendStringInfoChar(out, '}');
	}
	else
		write_string(out, value);
}

Jsonb *
JsonbValueToJsonb(JsonbValue *value)
{
	StringInfoData out;

	initStringInfo(&out);
	write_jsonb(&out, value);
	return (Jsonb *) out.data;
}

/* ------------------------------------------------------------------------
 * Lists, encodings, times
 * ------------------------------------------------------------------------
 */

List *
lappend(List *list, void *datum)
{
	if (list == NIL)
	{
		list = palloc0(sizeof(List));
		list->type = T_List;
		list->max_length = 4;
		list->elements = palloc(list->max_length * sizeof(ListCell));
	}
	else if (list->length == list->max_length)
	{
		list->max_length *= 2;
		list->elements = repalloc(list->elements,
								  list->max_length * sizeof(ListCell));
	}
	list->elements[list->length++].ptr_value = datum;
	return list;
}

List *
list_make1_impl(NodeTag type, ListCell cell)
{
	return lappend(NIL, cell.ptr_value);
}

int
pg_encoding_mbcliplen(int encoding, const char *text, int len, int limit)
{
	int			clipped = 0;

	while (clipped < len && text[clipped] != '\0')
	{
		int			next = pg_encoding_mblen(encoding, text + clipped);

		if (clipped + next > limit)
			break;
		clipped += next;
	}
	return clipped;
}

int
date2j(int year, int month, int day)
{
	int			century;
	int			julian;

	month += month > 2 ? 1 : 13;
	year += month > 13 ? 4799 : 4800;
	century = year / 100;
	julian = year * 365 - 32167 + year / 4 - century + century / 4;
	return julian + 7834 * month / 256 + day;
}

TimestampTz
time_t_to_timestamptz(pg_time_t t)
{
	return (t - (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY) *
		USECS_PER_SEC;
}

/* Seconds since PostgreSQL's epoch: the text matters to nobody here. */
const char *
timestamptz_to_str(TimestampTz t)
{
	static char text[MAXDATELEN + 1];

	snprintf(text, sizeof(text), INT64_FORMAT, t / USECS_PER_SEC);
	return text;
}

TimestampTz
GetCurrentTimestamp(void)
{
	return 0;
}
