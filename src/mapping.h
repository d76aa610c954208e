/*-------------------------------------------------------------------------
 *
 * mapping.h
 *	  From HubSpot's records to rows of a target table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_MAPPING_H
#define HS_MAPPING_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "executor/spi.h"
#include "nodes/pg_list.h"
#include "utils/uuid.h"

#include "catalog.h"
#include "filter.h"
#include "json.h"

/* The sync type whose owners have a history, and the properties for it. */
#define HS_CONTACTS_TYPE "contacts"
#define HS_OWNER_PROPERTY "hubspot_owner_id"

/* Old ids of a record that others were merged into (facts section 7). */
#define HS_MERGED_IDS_PROPERTY "hs_merged_object_ids"

/* Why a row is archived. */
#define HS_REASON_ARCHIVED "archived"
#define HS_REASON_MERGED "merged"
#define HS_REASON_GONE "gone"
#define HS_REASON_FILTERED "filtered"

typedef struct HsStage
{
	const char *id;
	const char *status;			/* open, won, lost; NULL: no such stage */
} HsStage;

/* Where a column's value comes from. */
typedef enum HsColumnKind
{
	HS_COLUMN_ID,
	HS_COLUMN_VALUE,
	HS_COLUMN_DEAL_STATUS,
	HS_COLUMN_OWNER_NAME,
	HS_COLUMN_CONSTANT,
	HS_COLUMN_PROPERTIES,
	HS_COLUMN_ARCHIVED,
	HS_COLUMN_ARCHIVED_AT,
	HS_COLUMN_REASON,
	HS_COLUMN_MERGED_INTO,
	HS_COLUMN_UPDATED_AT,
	HS_COLUMN_NOW,				/* from here on no input of the statement */
	HS_COLUMN_CONNECTION
} HsColumnKind;

#define HS_COLUMN_KINDS (HS_COLUMN_CONNECTION + 1)

typedef struct HsColumn
{
	HsColumnKind kind;
	char	   *name;
	const char *property;
	const char *argument;
	Oid			type;
	int32		typmod;
	char		category;		/* pg_type.typcategory */
	bool		is_key;
	bool		insert_only;
} HsColumn;

typedef struct HsRecord
{
	const char *id;
	int64		id_number;
	TimestampTz updated_at;		/* 0: unknown */
	bool		archived;
	TimestampTz archived_at;	/* 0: unknown */
	const char *reason;			/* not to be stored: its row, if there is one,
								 * is to be marked with this; else NULL */
	const char *merged_into;	/* with that reason; else NULL */
	bool		unknown;		/* its row, if any, is not the sync's */
	const HsJson *json;			/* the whole record */
	const HsJson *properties;	/* where property values are */
	char	  **values;			/* text per input column, NULL for null and
								 * where hs_mapping_own_value() has them */
	const HsColumn *refused;	/* whose value cannot be right; NULL: none */
} HsRecord;

/* A statement on the target, prepared at first use. */
typedef struct HsStatement
{
	char	   *sql;
	SPIPlanPtr	plan;
} HsStatement;

typedef struct HsMapping
{
	Oid			relation;
	Oid			schema;
	char	   *name;
	char	   *target;			/* qualified and quoted */
	const char *only;			/* "ONLY " unless it is partitioned: children
								 * may be anybody's */
	bool		is_owners;		/* properties are the record's own members */
	HsColumn   *columns;		/* the inputs first */
	int			ncolumns;
	int			ninputs;
	List	   *properties;		/* of char *: to ask HubSpot for, sorted */
	bool		has_connection;
	bool		owns[HS_COLUMN_KINDS];	/* columns that the sync fills itself */
	bool		keeps_rows;		/* bookkeeping goes to sync_rows */
	bool		needs_stages;
	bool		all_properties;
	HsJsonOrder *order;			/* of the properties, as jsonb */
	bool		keeps_owner_history;
	HsFilter   *filter;			/* NULL: none */
	HsStatement store;
	HsStatement delete;
	HsStatement mark;
	HsStatement live_in_range[2];	/* by whether lengths differ */
	HsStatement archived_in_range[2];
	HsStatement merged;
	HsStatement buried;
	HsStatement count;
	char	   *fingerprint;	/* of everything that decides what is stored */
} HsMapping;

extern bool hs_mapping_same_text(const char *a, const char *b);
extern char *hs_mapping_time_text(TimestampTz t);
extern Oid	hs_mapping_target(const HsSyncType *type);
extern void hs_mapping_check_roles(const HsSyncType *type, Oid owner);
extern void hs_mapping_check_writer(const HsSyncType *type);
extern HsMapping *hs_mapping_build(const HsSyncType *type);
extern void hs_mapping_add_properties(HsMapping *mapping, List *names);
extern void hs_mapping_check_target(const HsMapping *mapping);
extern bool hs_mapping_read_record(const HsMapping *mapping,
								   const HsJson *json, HsRecord *record,
								   const char **problem);
extern const char *hs_mapping_fill(const HsMapping *mapping,
								   HsRecord *record, List *stages);
extern Datum hs_mapping_own_value(const HsMapping *mapping,
								  const HsColumn *column,
								  const HsRecord *record, bool *isnull);
extern void hs_mapping_try_value(const HsMapping *mapping,
								 const HsRecord *record, int column);

#endif							/* HS_MAPPING_H */
