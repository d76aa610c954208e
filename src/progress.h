/*-------------------------------------------------------------------------
 *
 * progress.h
 *	  Students' progress, computed from the school's tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_PROGRESS_H
#define HS_PROGRESS_H

#include "postgres.h"

#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"

#include "sources.h"

/* Longer ids fit no index. */
#define HS_MAX_STUDENT_ID 1000

/* A property's type in HubSpot (facts section 9). */
typedef enum HsMetricType
{
	HS_METRIC_NUMBER,
	HS_METRIC_STRING,
	HS_METRIC_TEXT,				/* a string of several lines */
	HS_METRIC_DATE,
	HS_METRIC_DATETIME,
	HS_METRIC_STATUS			/* enumeration: see hs_level_statuses */
} HsMetricType;

typedef struct HsMetric
{
	char	   *name;			/* of the property */
	char	   *label;
	HsMetricType type;
	const char *level;			/* NULL: of no level */
	const char *part;			/* of a level's: units_completed and so on */
	bool		unset_if_idle;	/* has no value where there is no row at all */
	char	   *sql;			/* text, NULL for no value */
} HsMetric;

typedef struct HsStudent
{
	char	   *id;
	char	   *email;			/* as it is; may be NULL */
	char	   *address;		/* in lower case, trimmed; may be NULL */
	char	  **values;			/* parallel to the metrics; NULL: none */
	char	  **activity;		/* parallel to the levels, if asked for; NULL:
								 * no row, "": none that tells when */
} HsStudent;

/* Which students to read. */
typedef struct HsProgressScope
{
	const char *email;			/* NULL: all */
	bool		with_activity;
	Oid			owner;			/* whose tables they must be; InvalidOid: any */
} HsProgressScope;

typedef struct HsProgress
{
	MemoryContext context;
	HsProgressScope scope;
	HsSources  *sources;
	List	   *metrics;		/* of HsMetric * */
	Oid			id_type;
	bool		id_by_value;
	int16		id_length;
	SPIPlanPtr	edge_plan[2];	/* the end of a slice, by whether it has a
								 * beginning */
	SPIPlanPtr	plan[2][2];		/* by whether there is a beginning and an end */
	bool		has_last;
	Datum		last;			/* the id the last slice ended with */
	bool		finished;
	char	  **shared;			/* addresses that several students have, sorted */
	char	  **sharers;		/* their ids, separated by commas */
	int			nshared;
	uint64		seed;			/* of fingerprints */
	MemoryContextCallback cleanup;	/* frees the plans */
} HsProgress;

extern const char *const hs_level_statuses[];
extern const int hs_level_nstatuses;

extern HsProgress *hs_progress_open(const HsProgressScope *scope,
									List *without);
extern List *hs_progress_read(HsProgress *progress, int limit);
extern const char *hs_progress_problem(const HsProgress *progress,
									   const HsStudent *student,
									   const char **category);
extern List *hs_progress_find_users(const HsProgress *progress,
									const char *const *ids,
									const char *const *addresses, int n);
extern void hs_progress_append_values(StringInfo out,
									  const HsProgress *progress,
									  const HsStudent *student);
extern int64 hs_progress_fingerprint(const HsProgress *progress,
									 const HsStudent *student);
extern char *hs_progress_remarks(const HsProgress *progress);

#endif							/* HS_PROGRESS_H */
