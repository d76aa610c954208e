/*-------------------------------------------------------------------------
 *
 * json.h
 *	  JSON documents that belong to a memory context, and typed getters.
 *
 * Values handed out are borrowed from their document and live as long as the
 * memory context it was parsed in; nobody frees them one by one.  Only the
 * text of an integer is made on demand, in CurrentMemoryContext.  All text is
 * valid UTF-8 without NUL: what PostgreSQL cannot hold has been replaced by
 * U+FFFD before parsing.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_JSON_H
#define HS_JSON_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "lib/stringinfo.h"

typedef struct HsJson HsJson;	/* opaque: a value inside a document */

typedef struct HsJsonParse
{
	const HsJson *root;			/* NULL: not JSON, see error */
	const char *error;			/* constant or palloc'd text, NULL if parsed */
	int64		replaced;		/* characters replaced by U+FFFD */
} HsJsonParse;

typedef enum HsJsonType
{
	HS_JSON_NULL,				/* JSON null, or no such member */
	HS_JSON_BOOLEAN,
	HS_JSON_NUMBER,
	HS_JSON_STRING,
	HS_JSON_ARRAY,
	HS_JSON_OBJECT
} HsJsonType;

/*
 * The order in which the members of an object were last put into jsonb:
 * objects that follow each other mostly have the same members.
 */
typedef struct HsJsonOrder
{
	MemoryContext context;
	int		   *places;			/* of the members, in jsonb's order */
	int			n;
} HsJsonOrder;

extern HsJsonParse hs_json_parse(const char *text, size_t len);

extern HsJsonType hs_json_type(const HsJson *value);
extern const HsJson *hs_json_member(const HsJson *object, const char *name);
extern bool hs_json_has(const HsJson *object, const char *name);
extern const HsJson *hs_json_path(const HsJson *object, const char *first,
								  const char *second);
extern int	hs_json_length(const HsJson *array);
extern int	hs_json_names(const HsJson *object, const char ***names);
extern const HsJson *hs_json_element(const HsJson *array, int index);

extern const char *hs_json_text(const HsJson *value);
extern bool hs_json_bool(const HsJson *value, bool *result);
extern bool hs_json_int64(const HsJson *value, int64 *result);
extern bool hs_json_timestamp(const HsJson *value, TimestampTz *result);
extern int64 hs_json_epoch_ms(TimestampTz t);

extern char *hs_json_clip(const char *text, int max_bytes);
extern void hs_json_append(StringInfo out, const HsJson *value);
extern void hs_json_append_string(StringInfo out, const char *text);
extern HsJsonOrder *hs_json_new_order(void);
extern Datum hs_json_object_to_jsonb(const HsJson *object, bool with_nulls,
									 HsJsonOrder *order);

#endif							/* HS_JSON_H */
