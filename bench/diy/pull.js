'use strict'

// Contacts of HubSpot into the table diy.contacts:
//
//   node pull.js NAMES              all of them, by list
//   node pull.js NAMES SINCE_MS     those changed since, by search
//
// One page after the other, one INSERT ... ON CONFLICT a page.

const { start } = require('./common')

const LIST_LIMIT = 100
const SEARCH_LIMIT = 200

// A contact that has not changed since is left alone.
const STORE = `
  INSERT INTO diy.contacts AS c (hubspot_contact_id, email, first_name, last_name, phone, owner_id, lifecycle_stage,
    status, created_at, properties, archived, hubspot_updated_at, updated_at, synced_at)
  SELECT id, properties->>'email', properties->>'firstname', properties->>'lastname', properties->>'phone',
    properties->>'hubspot_owner_id', properties->>'lifecyclestage', properties->>'hs_lead_status',
    (properties->>'createdate')::timestamptz, properties, archived, "updatedAt", now(), now()
  FROM jsonb_to_recordset($1::jsonb) AS r(id text, properties jsonb, archived boolean, "updatedAt" timestamptz)
  ON CONFLICT (connection_id, hubspot_contact_id) DO UPDATE SET
    email = excluded.email, first_name = excluded.first_name, last_name = excluded.last_name, phone = excluded.phone,
    owner_id = excluded.owner_id, lifecycle_stage = excluded.lifecycle_stage, status = excluded.status,
    created_at = excluded.created_at, properties = excluded.properties, archived = excluded.archived,
    hubspot_updated_at = excluded.hubspot_updated_at, updated_at = excluded.updated_at, synced_at = excluded.synced_at
  WHERE c.hubspot_updated_at IS DISTINCT FROM excluded.hubspot_updated_at`

async function store(db, results) {
  await db.query({ name: 'store', text: STORE, values: [JSON.stringify(results)] })
  return results.length
}

async function pullAll(hubspot, db, names) {
  let records = 0
  let after
  do {
    const page = await hubspot.crm.contacts.basicApi.getPage(LIST_LIMIT, after, names)
    records += await store(db, page.results)
    after = page.paging?.next?.after
  } while (after)
  return records
}

// Pages of their own above the last id: a search gives no more than 10,000.
async function pullChanges(hubspot, db, names, since) {
  let records = 0
  let last = '0'
  let page
  do {
    page = await hubspot.crm.contacts.searchApi.doSearch({
      filterGroups: [{
        filters: [
          { propertyName: 'lastmodifieddate', operator: 'GTE', value: since },
          { propertyName: 'hs_object_id', operator: 'GT', value: last }
        ]
      }],
      sorts: ['hs_object_id'],
      properties: names,
      limit: SEARCH_LIMIT
    })
    records += await store(db, page.results)
    last = page.results.at(-1)?.id
  } while (page.results.length === SEARCH_LIMIT)
  return records
}

const [names, since] = process.argv.slice(2)
start((hubspot, db) =>
  since ? pullChanges(hubspot, db, names.split(','), since) : pullAll(hubspot, db, names.split(',')))
