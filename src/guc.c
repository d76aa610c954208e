/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  Definition and checks of the settings.
 *
 * The settings of runs are PGC_SUSET: those that decide where the token goes
 * must be a superuser's, and the others steer a budget that the whole account
 * shares.  Those of the launcher, which has no session, are PGC_SIGHUP.
 * A run reads them in its own worker, where only the configuration file,
 * ALTER SYSTEM, ALTER DATABASE and ALTER ROLE of the target's owner count.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <limits.h>

#include "datatype/timestamp.h"
#include "pgtime.h"
#include "utils/guc.h"
#include "utils/varlena.h"

#include "guc.h"
#include "hubspot_sync.h"

char	   *hs_api_url = NULL;
int			hs_api_version = 0;
char	   *hs_access_token_file = NULL;
char	   *hs_proxy = NULL;
char	   *hs_ca_file = NULL;
int			hs_connect_timeout;
int			hs_request_timeout;
int			hs_low_speed_timeout;
int			hs_max_response_size;
int			hs_max_retries;
int			hs_retry_delay;
int			hs_burst_limit;
int			hs_search_limit;
int			hs_overlap;
int			hs_deep_overlap;
int			hs_lock_timeout;
int			hs_store_timeout;
int			hs_progress_slice;
int			hs_log_retention;
bool		hs_enabled;
char	   *hs_databases = NULL;
int			hs_launcher_interval;
char	   *hs_schedule_time_zone = NULL;

/* The object endpoints of both have the same bodies (facts section 1). */
static const struct config_enum_entry api_versions[] = {
	{"2026-09", 0, false},
	{"2026-03", 1, false},
	{NULL, 0, false}
};

typedef struct StringSetting
{
	const char *name;
	const char *short_desc;
	const char *long_desc;
	char	  **variable;
	const char *boot;
	GucStringCheckHook check;
} StringSetting;

typedef struct IntSetting
{
	const char *name;
	const char *short_desc;
	const char *long_desc;
	int		   *variable;
	int			boot;
	int			min;
	int			max;
	int			flags;
} IntSetting;

static bool check_api_url(char **newval, void **extra, GucSource source);
static bool check_databases(char **newval, void **extra, GucSource source);
static bool check_time_zone(char **newval, void **extra, GucSource source);

/* They name places where the token is read or sent: superusers only. */
static const StringSetting string_settings[] = {
	{
		"hubspot_sync.api_url",
		"Base URL of HubSpot's API.",
		"https only; http is accepted for a loopback address, for tests.",
		&hs_api_url, "https://api.hubapi.com", check_api_url
	},
	{
		"hubspot_sync.access_token_file",
		"File that holds the HubSpot access token.",
		"Owned by the server's user with mode 0600, or by root with mode 0640. "
		"It is read when a request needs it, so that a token can be rotated "
		"without a restart.",
		&hs_access_token_file, "", NULL
	},
	{
		"hubspot_sync.proxy",
		"Proxy for requests to HubSpot, empty for none.",
		"Proxy variables in the server's environment are ignored.",
		&hs_proxy, "", NULL
	},
	{
		"hubspot_sync.ca_file",
		"File with the certificate authorities to trust, empty for the "
		"system's.",
		NULL,
		&hs_ca_file, "", NULL
	},
};

static const IntSetting int_settings[] = {
	{
		"hubspot_sync.connect_timeout",
		"Time allowed for connecting to HubSpot.",
		NULL, &hs_connect_timeout, 10000, 100, 600000, GUC_UNIT_MS
	},
	{
		"hubspot_sync.request_timeout",
		"Time allowed for one request, answer included.",
		NULL, &hs_request_timeout, 60000, 100, 3600000, GUC_UNIT_MS
	},
	{
		"hubspot_sync.low_speed_timeout",
		"Time after which an answer that does not progress is given up.",
		NULL, &hs_low_speed_timeout, 30, 1, 3600, GUC_UNIT_S
	},
	{
		"hubspot_sync.max_response_size",
		"Largest answer accepted, after decompression.",
		NULL, &hs_max_response_size, 128 * 1024, 16, 1000 * 1024, GUC_UNIT_KB
	},
	{
		"hubspot_sync.max_retries",
		"How often one request is repeated before the run gives up.",
		NULL, &hs_max_retries, 8, 0, 100, 0
	},
	{
		"hubspot_sync.retry_delay",
		"Base of the exponential back-off between attempts.",
		"After a reached limit waits are based on 20 times this value, for "
		"searches on twice.",
		&hs_retry_delay, 500, 1, 60000, GUC_UNIT_MS
	},
	{
		"hubspot_sync.burst_limit",
		"Requests allowed in 10 seconds, 0 to learn from HubSpot's answers.",
		"Limits that HubSpot states in its answers replace this value.",
		&hs_burst_limit, 0, 0, 1000000, 0
	},
	{
		"hubspot_sync.search_limit",
		"Search requests allowed in one second.",
		NULL, &hs_search_limit, 5, 1, 1000000, 0
	},
	{
		"hubspot_sync.overlap",
		"How far an incremental run reaches back before the previous one.",
		"It covers the delay with which HubSpot's search sees a change.",
		&hs_overlap, 300, 0, 86400, GUC_UNIT_S
	},
	{
		"hubspot_sync.deep_overlap",
		"The same once an hour, since the delay has no stated bound.",
		NULL, &hs_deep_overlap, 3600, 0, 7 * 86400, GUC_UNIT_S
	},
	{
		"hubspot_sync.lock_timeout",
		"Time a run waits for a lock on its target table.",
		NULL, &hs_lock_timeout, 60000, 100, 86400000, GUC_UNIT_MS
	},
	{
		"hubspot_sync.store_timeout",
		"Time allowed for storing one page, 0 for no limit.",
		NULL, &hs_store_timeout, 300000, 0, 86400000, GUC_UNIT_MS
	},
	{
		"hubspot_sync.progress_slice",
		"Students whose progress is computed by one statement.",
		"More take more memory, fewer more time.",
		&hs_progress_slice, 4000, 1, 100000, 0
	},
	{
		"hubspot_sync.log_retention",
		"Age at which runs and closed errors are deleted, 0 to keep them.",
		"It is done at the end of each run. The latest completed run of a type "
		"stays.",
		&hs_log_retention, 90 * SECS_PER_DAY, 0, INT_MAX, GUC_UNIT_S
	},
};

/* Defines the settings that decide whether and when something runs. */
static void
define_operation(void)
{
	DefineCustomBoolVariable("hubspot_sync.enabled",
							 "Whether runs are accepted and started.",
							 "Off is for copies of a database that must leave the live account alone.",
							 &hs_enabled, true, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("hubspot_sync.databases",
							   "Databases in which the launcher starts runs by schedule.",
							   "A list of names as in search_path. It takes effect where the library is preloaded.",
							   &hs_databases, "", PGC_SIGHUP, 0,
							   check_databases, NULL, NULL);
	DefineCustomIntVariable("hubspot_sync.launcher_interval",
							"Time between the launcher's visits to a database.",
							NULL, &hs_launcher_interval, 10, 1, 3600,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomStringVariable("hubspot_sync.schedule_time_zone",
							   "Time zone of the launcher's daily runs.",
							   NULL, &hs_schedule_time_zone, "UTC", PGC_SUSET,
							   0, check_time_zone, NULL, NULL);
}

/*
 * Defines all settings.  Called once, when the library is loaded.
 */
void
hs_guc_init(void)
{
	for (size_t i = 0; i < lengthof(string_settings); i++)
	{
		const StringSetting *s = &string_settings[i];

		DefineCustomStringVariable(s->name, s->short_desc, s->long_desc,
								   s->variable, s->boot, PGC_SUSET,
								   GUC_SUPERUSER_ONLY, s->check, NULL, NULL);
	}
	for (size_t i = 0; i < lengthof(int_settings); i++)
	{
		const IntSetting *s = &int_settings[i];

		DefineCustomIntVariable(s->name, s->short_desc, s->long_desc,
								s->variable, s->boot, s->min, s->max,
								PGC_SUSET, s->flags, NULL, NULL, NULL);
	}
	define_operation();
	DefineCustomEnumVariable("hubspot_sync.api_version",
							 "Version of HubSpot's API that requests name.",
							 NULL, &hs_api_version, 0, api_versions,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved(HS_EXTENSION_NAME);
}

/*
 * The API version as it stands in request paths.  Constant text.
 */
const char *
hs_guc_api_version(void)
{
	return api_versions[hs_api_version].name;
}

/*
 * Whether the API is reached without TLS, which check_api_url() allows for
 * loopback addresses only.
 */
bool
hs_guc_api_is_plain_http(void)
{
	return strncmp(hs_api_url, "http://", 7) == 0;
}

/*
 * Whether a URL's host, of the given length, is this machine's loopback.
 * Only literal addresses and "localhost": a name could be made to resolve to
 * anything.
 */
static bool
is_loopback(const char *host, size_t len)
{
	char		buf[64];
	struct in_addr addr;

	if (len == 0 || len >= sizeof(buf))
		return false;
	memcpy(buf, host, len);
	buf[len] = '\0';
	if (strcmp(buf, "localhost") == 0 || strcmp(buf, "[::1]") == 0)
		return true;
	return inet_pton(AF_INET, buf, &addr) == 1 &&
		(ntohl(addr.s_addr) >> 24) == 127;
}

/*
 * Length of the host at the start of `authority`, brackets of an IPv6
 * address included; 0 if what follows the host is neither a port nor the
 * end.
 */
static size_t
host_length(const char *authority)
{
	size_t		len = authority[0] == '[' ? strcspn(authority, "]") + 1
		: strcspn(authority, ":/");
	const char *rest;

	if (len > strlen(authority))
		return 0;
	rest = authority + len;
	if (*rest == ':')
	{
		size_t		digits = strspn(rest + 1, "0123456789");
		long		port = strtol(rest + 1, NULL, 10);

		if (digits == 0 || digits > 5 || port < 1 || port > 65535)
			return 0;
		rest += 1 + digits;
	}
	return (*rest == '\0' || *rest == '/') ? len : 0;
}

/*
 * Check hook of hubspot_sync.api_url.  Whoever sets it decides where the
 * token is sent, so it must be TLS, and must not hide a host behind user
 * information.
 */
static bool
check_api_url(char **newval, void **extra, GucSource source)
{
	const char *url = *newval;
	const char *authority;
	size_t		len;

	if (strpbrk(url, "@?#\\ \t\r\n") != NULL)
	{
		GUC_check_errdetail("The URL must consist of scheme, host, port and path only.");
		return false;
	}
	if (strncmp(url, "https://", 8) == 0)
		authority = url + 8;
	else if (strncmp(url, "http://", 7) == 0)
		authority = url + 7;
	else
	{
		GUC_check_errdetail("The URL must begin with \"https://\".");
		return false;
	}
	len = host_length(authority);
	if (len == 0)
	{
		GUC_check_errdetail("The URL names no valid host and port.");
		return false;
	}
	if (authority == url + 7 && !is_loopback(authority, len))
	{
		GUC_check_errdetail("Without TLS only a loopback address is accepted.");
		return false;
	}
	return true;
}

/*
 * Check hook of hubspot_sync.databases.
 */
static bool
check_databases(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names;
	bool		valid = SplitIdentifierString(copy, ',', &names);

	if (!valid)
		GUC_check_errdetail("The list of databases has a syntax error.");
	else if (list_length(names) > HS_MAX_DATABASES)
	{
		GUC_check_errdetail("The list has more than %d databases.",
							HS_MAX_DATABASES);
		valid = false;
	}
	list_free(names);
	pfree(copy);
	return valid;
}

/*
 * Check hook of hubspot_sync.schedule_time_zone.
 */
static bool
check_time_zone(char **newval, void **extra, GucSource source)
{
	pg_tz	   *tz = pg_tzset(*newval);

	if (tz != NULL && pg_tz_acceptable(tz))
		return true;
	GUC_check_errdetail("There is no such time zone.");
	return false;
}
