/*
 * The floor: what moving the data costs if nothing else is done.
 *
 *	 floor load NAMES				copies all contacts into empty tables
 *	 floor merge NAMES [SINCE_MS]	writes the rows that differ; with a time
 *									only those changed since, by search
 *	 floor push						sends students who differ, 100 a request
 *
 * It keeps its connection alive, accepts gzip, parses each page once with
 * json-c, and hands the rows to COPY in one transaction.  It has no checkpoint,
 * no retries, no records at fault, no log, and cannot be cancelled.  That is
 * what hubspot_sync's times are divided by.
 *
 * From the environment: HUBSPOT_URL, HUBSPOT_TOKEN, INTERVAL_MS (the least
 * time between two requests) and libpq's variables; PGOPTIONS has a search_path
 * that says which schema's tables are written.  On standard output it says
 * "backend PID" at its beginning and "done RECORDS" when everything is
 * committed, then it waits for the end of its standard input, so that somebody
 * can look at what it has used.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <curl/curl.h>
#include <json-c/json.h>
#include <libpq-fe.h>

#define API "/crm/objects/2026-09/contacts"
#define LIST_LIMIT 100
#define SEARCH_LIMIT 200
#define BATCH_LIMIT 100
#define CONNECTION_ID "00000000-0000-0000-0000-000000000000"

/* Columns of contacts that are properties, in the order of column_list. */
static const char *const mapped[] = {
	"email", "firstname", "lastname", "phone", "hubspot_owner_id",
	"lifecyclestage", "hs_lead_status", "createdate"
};

static const char *const column_list =
	"connection_id, hubspot_contact_id, email, first_name, last_name, phone,"
	" owner_id, lifecycle_stage, status, created_at, properties, archived,"
	" hubspot_updated_at, updated_at, synced_at";

/* A growing piece of text. */
typedef struct Text
{
	char	   *data;
	size_t		len;
	size_t		size;
} Text;

static CURL *curl;
static PGconn *db;
static Text answer;
static long interval_ms;
static long records;

static void
die(const char *format, ...)
{
	va_list		args;

	va_start(args, format);
	fprintf(stderr, "floor: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	exit(1);
}

static void
append(Text *text, const char *data, size_t len)
{
	if (text->len + len + 1 > text->size)
	{
		text->size = 2 * (text->len + len + 1);
		text->data = realloc(text->data, text->size);
		if (text->data == NULL)
			die("out of memory");
	}
	memcpy(text->data + text->len, data, len);
	text->len += len;
	text->data[text->len] = '\0';
}

static void
append_text(Text *text, const char *more)
{
	append(text, more, strlen(more));
}

/* ------------------------------------------------------------------------
 * HTTP
 * ------------------------------------------------------------------------
 */

static size_t
take_body(char *data, size_t size, size_t count, void *arg)
{
	(void) arg;
	append(&answer, data, size * count);
	return size * count;
}

static const char *
environment(const char *name)
{
	const char *value = getenv(name);

	if (value == NULL)
		die("%s is not set", name);
	return value;
}

static void
open_http(void)
{
	struct curl_slist *headers = NULL;
	char		line[1000];

	snprintf(line, sizeof(line), "Authorization: Bearer %s",
			 environment("HUBSPOT_TOKEN"));
	headers = curl_slist_append(headers, line);
	headers = curl_slist_append(headers, "Content-Type: application/json");
	headers = curl_slist_append(headers, "Expect:");
	interval_ms = getenv("INTERVAL_MS") ? atol(getenv("INTERVAL_MS")) : 0;
	curl = curl_easy_init();
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_ACCEPT_ENCODING, "gzip, deflate");
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
	curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
}

static long
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits until a request is allowed. */
static void
keep_pace(void)
{
	static long next;
	long		wait = next - now_ms();

	if (wait > 0)
	{
		struct timespec pause = {wait / 1000, wait % 1000 * 1000000};

		nanosleep(&pause, NULL);
	}
	next = (wait > 0 ? next : now_ms()) + interval_ms;
}

/* Makes a request, GET without a body, and parses the answer. */
static struct json_object *
request(const char *path, const char *body)
{
	struct json_object *root;
	Text		url = {0};
	CURLcode	code;
	long		status;

	keep_pace();
	append_text(&url, environment("HUBSPOT_URL"));
	append_text(&url, path);
	curl_easy_setopt(curl, CURLOPT_URL, url.data);
	if (body != NULL)
		curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	else
		curl_easy_setopt(curl, CURLOPT_HTTPGET, 1L);
	answer.len = 0;
	code = curl_easy_perform(curl);
	if (code != CURLE_OK)
		die("%s: %s", path, curl_easy_strerror(code));
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200)
		die("%s: status %ld: %.500s", path, status, answer.data);
	root = json_tokener_parse(answer.data);
	if (root == NULL)
		die("%s: no JSON", path);
	free(url.data);
	return root;
}

static struct json_object *
member(struct json_object *object, const char *name)
{
	struct json_object *value = NULL;

	json_object_object_get_ex(object, name, &value);
	return value;
}

/* ------------------------------------------------------------------------
 * The database
 * ------------------------------------------------------------------------
 */

static PGresult *
execute(const char *sql, ExecStatusType expected)
{
	PGresult   *result = PQexec(db, sql);

	if (PQresultStatus(result) != expected)
		die("%s: %s", sql, PQerrorMessage(db));
	return result;
}

static void
run(const char *sql)
{
	PQclear(execute(sql, PGRES_COMMAND_OK));
}

static void
begin_copy(const char *table, const char *columns)
{
	char		sql[1000];

	snprintf(sql, sizeof(sql), "COPY %s (%s) FROM STDIN", table, columns);
	PQclear(execute(sql, PGRES_COPY_IN));
}

static void
send_rows(const Text *rows)
{
	if (rows->len > 0 && PQputCopyData(db, rows->data, (int) rows->len) != 1)
		die("COPY: %s", PQerrorMessage(db));
}

static void
end_copy(void)
{
	PGresult   *result;

	if (PQputCopyEnd(db, NULL) != 1)
		die("COPY: %s", PQerrorMessage(db));
	while ((result = PQgetResult(db)) != NULL)
	{
		if (PQresultStatus(result) != PGRES_COMMAND_OK)
			die("COPY: %s", PQerrorMessage(db));
		PQclear(result);
	}
}

/* Appends a value in COPY's text format and what follows it; NULL is \N. */
static void
append_field(Text *row, const char *value, char end)
{
	if (value == NULL)
		append(row, "\\N", 2);
	while (value != NULL && *value != '\0')
	{
		size_t		plain = strcspn(value, "\\\t\n\r");

		append(row, value, plain);
		value += plain;
		if (*value == '\0')
			break;
		append(row, "\\", 1);
		append_text(row, *value == '\t' ? "t" : *value == '\n' ? "n"
					: *value == '\r' ? "r" : "\\");
		value++;
	}
	append(row, &end, 1);
}

/* ------------------------------------------------------------------------
 * Pulling
 * ------------------------------------------------------------------------
 */

static const char *started;		/* our clock, as text */

/* A property's text, NULL for null. */
static const char *
property(struct json_object *properties, const char *name)
{
	return json_object_get_string(member(properties, name));
}

/* The row of a contact in contacts. */
static void
append_contact(Text *rows, struct json_object *record)
{
	struct json_object *properties = member(record, "properties");
	int			flags = JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE;

	append_field(rows, CONNECTION_ID, '\t');
	append_field(rows, property(record, "id"), '\t');
	for (size_t i = 0; i < sizeof(mapped) / sizeof(mapped[0]); i++)
		append_field(rows, property(properties, mapped[i]), '\t');
	append_field(rows, json_object_to_json_string_ext(properties, flags), '\t');
	append_field(rows, "false", '\t');
	append_field(rows, property(record, "updatedAt"), '\t');
	append_field(rows, started, '\t');
	append_field(rows, started, '\n');
}

/* The row of a contact in contact_owner_history, if it has an owner. */
static void
append_owner(Text *rows, struct json_object *record)
{
	const char *owner = property(member(record, "properties"),
								 "hubspot_owner_id");

	if (owner == NULL || owner[0] == '\0')
		return;
	append_field(rows, CONNECTION_ID, '\t');
	append_field(rows, property(record, "id"), '\t');
	append_field(rows, owner, '\t');
	append_field(rows, property(record, "updatedAt"), '\n');
}

/*
 * Turns a page's records into rows and hands those of contacts to COPY; those of
 * the history are added to `owners`, if there is somebody who wants them.
 */
static void
take_page(struct json_object *root, Text *owners)
{
	static Text rows;
	struct json_object *results = member(root, "results");

	rows.len = 0;
	for (size_t i = 0; i < json_object_array_length(results); i++)
	{
		struct json_object *record = json_object_array_get_idx(results, i);

		records++;
		append_contact(&rows, record);
		if (owners != NULL)
			append_owner(owners, record);
	}
	send_rows(&rows);
}

/* All contacts, by list; then the recycle bin, which is empty. */
static void
read_list(const char *names, Text *owners)
{
	char		after[100] = "";
	Text		path = {0};

	do
	{
		struct json_object *root;
		const char *next;

		path.len = 0;
		append_text(&path, API "?limit=100&properties=");
		append_text(&path, names);
		append_text(&path, after);
		root = request(path.data, NULL);
		take_page(root, owners);
		next = property(member(member(root, "paging"), "next"), "after");
		snprintf(after, sizeof(after), "%s%s", next ? "&after=" : "",
				 next ? next : "");
		json_object_put(root);
	} while (after[0] != '\0');
	json_object_put(request(API "?limit=100&archived=true", NULL));
}

/* The contacts changed since a time, by search, each page above the last id. */
static void
read_changes(const char *names, const char *since)
{
	char		last[100] = "0";
	Text		body = {0};
	Text		quoted = {0};
	size_t		n;

	for (const char *p = names; *p != '\0'; p++)
	{
		if (*p == ',')
			append_text(&quoted, "\",\"");
		else
			append(&quoted, p, 1);
	}
	do
	{
		struct json_object *root;
		struct json_object *results;

		body.len = 0;
		append_text(&body, "{\"filterGroups\":[{\"filters\":["
					"{\"propertyName\":\"lastmodifieddate\",\"operator\":\"GTE\",\"value\":\"");
		append_text(&body, since);
		append_text(&body, "\"},"
					"{\"propertyName\":\"hs_object_id\",\"operator\":\"GT\",\"value\":\"");
		append_text(&body, last);
		append_text(&body, "\"}]}],\"limit\":200,"
					"\"sorts\":[{\"propertyName\":\"hs_object_id\",\"direction\":\"ASCENDING\"}],"
					"\"properties\":[\"");
		append_text(&body, quoted.data);
		append_text(&body, "\"]}");
		root = request(API "/search", body.data);
		results = member(root, "results");
		n = json_object_array_length(results);
		take_page(root, NULL);
		if (n > 0)
			snprintf(last, sizeof(last), "%s",
					 property(json_object_array_get_idx(results, n - 1), "id"));
		json_object_put(root);
	} while (n == SEARCH_LIMIT);
}

static void
load(const char *names)
{
	Text		owners = {0};

	run("BEGIN");
	begin_copy("contacts", column_list);
	read_list(names, &owners);
	end_copy();
	begin_copy("contact_owner_history",
			   "connection_id, hubspot_contact_id, owner_id, valid_from");
	send_rows(&owners);
	end_copy();
	run("COMMIT");
}

/* Ends and begins ownerships where a contact's owner has changed. */
static void
merge_owners(void)
{
	run("CREATE TEMP TABLE moved ON COMMIT DROP AS"
		" SELECT i.connection_id, i.hubspot_contact_id, i.owner_id, i.hubspot_updated_at FROM incoming i"
		" LEFT JOIN contact_owner_history h ON h.connection_id = i.connection_id"
		"  AND h.hubspot_contact_id = i.hubspot_contact_id AND h.valid_to IS NULL"
		" WHERE nullif(i.owner_id, '') IS DISTINCT FROM h.owner_id");
	run("UPDATE contact_owner_history h SET valid_to ="
		"  greatest(m.hubspot_updated_at, h.valid_from + interval '1 microsecond')"
		" FROM moved m WHERE h.valid_to IS NULL AND h.connection_id = m.connection_id"
		"  AND h.hubspot_contact_id = m.hubspot_contact_id");
	run("INSERT INTO contact_owner_history (connection_id, hubspot_contact_id, owner_id, valid_from)"
		" SELECT connection_id, hubspot_contact_id, owner_id, hubspot_updated_at FROM moved WHERE owner_id <> ''");
}

/*
 * Reads into a temporary table and writes what differs: contacts by one
 * statement, their owners by three.
 */
static void
merge(const char *names, const char *since)
{
	run("BEGIN");
	run("CREATE TEMP TABLE incoming (LIKE contacts) ON COMMIT DROP");
	run("ALTER TABLE incoming ALTER properties SET STORAGE EXTERNAL");
	begin_copy("incoming", column_list);
	if (since == NULL)
		read_list(names, NULL);
	else
		read_changes(names, since);
	end_copy();
	run("ANALYZE incoming (connection_id, hubspot_contact_id)");
	run("INSERT INTO contacts SELECT i.* FROM incoming i"
		" LEFT JOIN contacts c USING (connection_id, hubspot_contact_id)"
		" WHERE (c.email, c.first_name, c.last_name, c.phone, c.owner_id, c.lifecycle_stage, c.status,"
		"  c.created_at, c.properties, c.archived, c.hubspot_updated_at) IS DISTINCT FROM"
		" (i.email, i.first_name, i.last_name, i.phone, i.owner_id, i.lifecycle_stage, i.status,"
		"  i.created_at, i.properties, i.archived, i.hubspot_updated_at)"
		" ON CONFLICT (connection_id, hubspot_contact_id) DO UPDATE SET"
		" (email, first_name, last_name, phone, owner_id, lifecycle_stage, status, created_at,"
		"  properties, archived, hubspot_updated_at, updated_at, synced_at) ="
		" (excluded.email, excluded.first_name, excluded.last_name, excluded.phone, excluded.owner_id,"
		"  excluded.lifecycle_stage, excluded.status, excluded.created_at, excluded.properties,"
		"  excluded.archived, excluded.hubspot_updated_at, excluded.updated_at, excluded.synced_at)");
	merge_owners();
	run("COMMIT");
}

/* ------------------------------------------------------------------------
 * Pushing
 * ------------------------------------------------------------------------
 */

/* Sends some rows of a result as one batch. */
static void
send_batch(PGresult *students, int from, int to)
{
	Text		body = {0};
	struct json_object *root;

	append_text(&body, "{\"inputs\":[");
	for (int i = from; i < to; i++)
	{
		append_text(&body, i > from ? ",{\"id\":\"" : "{\"id\":\"");
		append_text(&body, PQgetvalue(students, i, 0));
		append_text(&body, "\",\"properties\":");
		append_text(&body, PQgetvalue(students, i, 1));
		append_text(&body, "}");
	}
	append_text(&body, "]}");
	root = request(API "/batch/update", body.data);
	if (json_object_array_length(member(root, "results")) != (size_t) (to - from))
		die("not all of a batch was accepted");
	records += to - from;
	json_object_put(root);
	free(body.data);
}

/* One aggregate, what differs from what was sent last, and batches of that. */
static void
push(void)
{
	PGresult   *students;
	int			n;

	run("BEGIN");
	run("CREATE TEMP TABLE outgoing ON COMMIT DROP AS"
		" SELECT p.user_id, s.contact_id, p.properties"
		" FROM bench_progress p JOIN sent s USING (user_id)"
		" WHERE s.properties IS DISTINCT FROM p.properties");
	students = execute("SELECT contact_id, properties FROM outgoing", PGRES_TUPLES_OK);
	n = PQntuples(students);
	for (int i = 0; i < n; i += BATCH_LIMIT)
		send_batch(students, i, i + BATCH_LIMIT < n ? i + BATCH_LIMIT : n);
	run("UPDATE sent s SET properties = o.properties FROM outgoing o WHERE o.user_id = s.user_id");
	run("COMMIT");
	PQclear(students);
}

int
main(int argc, char **argv)
{
	const char *task = argc > 1 ? argv[1] : "";
	const char *names = argc > 2 ? argv[2] : "";
	char		clock[100];
	time_t		now = time(NULL);

	strftime(clock, sizeof(clock), "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
	started = clock;
	db = PQconnectdb("application_name=floor");
	if (PQstatus(db) != CONNECTION_OK)
		die("%s", PQerrorMessage(db));
	printf("backend %d\n", PQbackendPID(db));
	fflush(stdout);
	open_http();
	if (strcmp(task, "load") == 0)
		load(names);
	else if (strcmp(task, "merge") == 0)
		merge(names, argc > 3 ? argv[3] : NULL);
	else if (strcmp(task, "push") == 0)
		push();
	else
		die("what is \"%s\"?", task);
	printf("done %ld\n", records);
	fflush(stdout);
	while (getchar() != EOF)
		;
	PQfinish(db);
	return 0;
}
