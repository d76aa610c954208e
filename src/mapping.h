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
#include "json.h"

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
	HS_COLUMN_UPDATED_AT,
	HS_COLUMN_NOW,				/* from here on no input of the statement */
	HS_COLUMN_CONNECTION
} HsColumnKind;

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
	const HsJson *json;			/* the whole record */
	const HsJson *properties;	/* where property values are */
	char	  **values;			/* text per input column, NULL for null */
	const HsColumn *refused;	/* whose value cannot be right; NULL: none */
} HsRecord;

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
	bool		has_archived;
	bool		has_updated_at;
	bool		keeps_rows;		/* bookkeeping goes to sync_rows */
	bool		needs_stages;
	char	   *store_sql;
	char	   *delete_sql;
	SPIPlanPtr	store_plan;		/* prepared at first use */
	SPIPlanPtr	delete_plan;
	char	   *fingerprint;	/* of everything that decides what is stored */
} HsMapping;

extern Oid	hs_mapping_target(const HsSyncType *type);
extern void hs_mapping_check_roles(const HsSyncType *type, Oid owner);
extern void hs_mapping_check_writer(const HsSyncType *type);
extern HsMapping *hs_mapping_build(const HsSyncType *type);
extern void hs_mapping_check_target(const HsMapping *mapping);
extern bool hs_mapping_read_record(const HsMapping *mapping,
								   const HsJson *json, HsRecord *record,
								   const char **problem);
extern const char *hs_mapping_fill(const HsMapping *mapping,
								   HsRecord *record, List *stages);
extern uint64 hs_mapping_store(HsMapping *mapping,
							   const pg_uuid_t *connection_id,
							   bool provisional,
							   HsRecord *const *records, int n);
extern uint64 hs_mapping_delete(HsMapping *mapping,
								const pg_uuid_t *connection_id,
								HsRecord *const *records, int n);
extern void hs_mapping_try_value(const HsMapping *mapping,
								 const HsRecord *record, int column);

#endif							/* HS_MAPPING_H */
