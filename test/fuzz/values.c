/*
 * Whatever a record says, mapping.c makes values of it that PostgreSQL can
 * hold, takes none that its column's type would read as something else, and
 * accepts no id that has two spellings.
 *
 * links: json.c filter.c
 */
#include "server.h"

#include "../../src/mapping.c"

#define COLUMN(its_kind, its_property, its_category) \
	{ \
		.kind = (its_kind), .property = (its_property), \
			.category = (its_category) \
	}

static HsColumn columns[] = {
	COLUMN(HS_COLUMN_ID, NULL, TYPCATEGORY_STRING),
	COLUMN(HS_COLUMN_VALUE, "s", TYPCATEGORY_STRING),
	COLUMN(HS_COLUMN_VALUE, "n", TYPCATEGORY_NUMERIC),
	COLUMN(HS_COLUMN_VALUE, "d", TYPCATEGORY_DATETIME),
	COLUMN(HS_COLUMN_VALUE, "b", TYPCATEGORY_BOOLEAN),
	COLUMN(HS_COLUMN_VALUE, "u", TYPCATEGORY_USER),
	COLUMN(HS_COLUMN_DEAL_STATUS, "s", TYPCATEGORY_STRING),
	COLUMN(HS_COLUMN_OWNER_NAME, NULL, TYPCATEGORY_STRING),
	COLUMN(HS_COLUMN_PROPERTIES, NULL, TYPCATEGORY_USER),
	COLUMN(HS_COLUMN_ARCHIVED, NULL, TYPCATEGORY_BOOLEAN),
	COLUMN(HS_COLUMN_ARCHIVED_AT, NULL, TYPCATEGORY_DATETIME),
	COLUMN(HS_COLUMN_REASON, NULL, TYPCATEGORY_STRING),
	COLUMN(HS_COLUMN_MERGED_INTO, NULL, TYPCATEGORY_STRING),
	COLUMN(HS_COLUMN_UPDATED_AT, NULL, TYPCATEGORY_DATETIME),
};

static HsStage won = {"closedwon", "won"};

/* What read_record() accepts as id: a number in its one spelling. */
static void
check_id(const HsRecord *record)
{
	REQUIRE(record->id_number >= 0);
	REQUIRE(strcmp(psprintf(INT64_FORMAT, record->id_number), record->id) == 0);
	REQUIRE(IS_VALID_TIMESTAMP(record->updated_at));
	REQUIRE(IS_VALID_TIMESTAMP(record->archived_at));
}

/*
 * A value that is not refused: no word that PostgreSQL knows a meaning for, no
 * text in place of no value.
 */
static void
check_value(const HsColumn *column, const char *value)
{
	if (column->kind != HS_COLUMN_VALUE || value == NULL)
		return;
	REQUIRE(value[0] != '\0' || column->category == TYPCATEGORY_STRING);
	if (column->category == TYPCATEGORY_DATETIME)
		REQUIRE(value[0] >= '0' && value[0] <= '9');
	if (column->category == TYPCATEGORY_NUMERIC)
		REQUIRE(strpbrk(value, "naifNAIF xX_") == NULL);
}

/* The status is known, unless the stage is not. */
static void
check_status(const HsRecord *record, const char *status, const char *unknown)
{
	const char *stage = hs_json_text(hs_json_member(record->properties, "s"));

	if (stage == NULL || stage[0] == '\0')
		REQUIRE(status == NULL && unknown == NULL);
	else if (strcmp(stage, won.id) == 0)
		REQUIRE(status == won.status && unknown == NULL);
	else
		REQUIRE(status == NULL && strcmp(unknown, stage) == 0);
}

/* All properties, or those with a value, as jsonb. */
static void
check_document(const HsMapping *mapping, const HsColumn *column,
			   const HsRecord *record)
{
	bool		isnull;
	Datum		jsonb = hs_mapping_own_value(mapping, column, record, &isnull);
	const char *text = DatumGetPointer(jsonb);

	REQUIRE(!isnull);
	REQUIRE(text[0] == '{' && server_reads_json(text, strlen(text)));
}

static void
check_values(const HsMapping *mapping, const HsRecord *record,
			 const char *unknown)
{
	for (int i = 0; i < mapping->ninputs; i++)
	{
		const HsColumn *column = &mapping->columns[i];
		const char *value = record->values[i];

		REQUIRE(value == NULL || server_can_hold(value));
		if (record->refused == NULL)
			check_value(column, value);
		if (column->kind == HS_COLUMN_PROPERTIES)
			check_document(mapping, column, record);
		if (column->kind == HS_COLUMN_DEAL_STATUS)
			check_status(record, value, unknown);
	}
}

static void
try_record(HsMapping *mapping, const HsJson *root)
{
	HsRecord	record;
	const char *problem = NULL;
	const char *unknown;

	if (!hs_mapping_read_record(mapping, root, &record, &problem))
	{
		REQUIRE(problem != NULL);
		return;
	}
	check_id(&record);
	unknown = hs_mapping_fill(mapping, &record, lappend(NIL, &won));
	check_values(mapping, &record, unknown);
}

void
fuzz_input(const char *data, size_t size)
{
	const HsJson *root = hs_json_parse(data, size).root;
	HsMapping	mapping = {
		.columns = columns,
		.ncolumns = lengthof(columns),
		.ninputs = lengthof(columns),
		.order = hs_json_new_order()
	};

	try_record(&mapping, root);
	mapping.all_properties = true;
	mapping.is_owners = true;
	try_record(&mapping, root);
}
