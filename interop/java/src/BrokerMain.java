import java.io.File;
import java.util.*;
import org.apache.activemq.broker.BrokerService;
import org.apache.activemq.broker.TransportConnector;
import org.apache.activemq.store.kahadb.*;

/**
 * ActiveMQ on loopback, from key=value arguments. Prints `listening PROTOCOL HOST:PORT` per connector and then `ready`;
 * stops cleanly on SIGTERM.
 *
 * dir= the KahaDB directory; port= OpenWire, stomp= STOMP (0 picks one, absent = no connector); sched= a scheduler store;
 * multi=true for mKahaDB; the rest are attributes of kahaDB.
 */
public class BrokerMain {
    static BrokerService build(Map<String, String> o) throws Exception {
        BrokerService b = new BrokerService();
        b.setBrokerName("interop");
        b.setUseJmx(false);
        b.setUseShutdownHook(false);
        b.setAdvisorySupport(false);
        b.setPersistent(true);
        b.setDataDirectory(o.get("dir"));
        if (o.containsKey("sched")) {
            b.setSchedulerSupport(true);
            b.setSchedulerDirectoryFile(new File(o.get("sched")));
        }
        if ("true".equals(o.get("multi"))) {
            MultiKahaDBPersistenceAdapter m = new MultiKahaDBPersistenceAdapter();
            m.setDirectory(new File(o.get("dir")));
            FilteredKahaDBPersistenceAdapter fast = new FilteredKahaDBPersistenceAdapter();
            fast.setQueue("FAST.>");
            fast.setPersistenceAdapter(kaha(o, null));
            FilteredKahaDBPersistenceAdapter rest = new FilteredKahaDBPersistenceAdapter();
            rest.setPerDestination(true);
            rest.setPersistenceAdapter(kaha(o, null));
            m.setFilteredPersistenceAdapters(new ArrayList<>(List.of(fast, rest)));
            b.setPersistenceAdapter(m);
        } else {
            b.setPersistenceAdapter(kaha(o, new File(o.get("dir"))));
        }
        if (o.containsKey("port")) {
            b.addConnector("tcp://127.0.0.1:" + o.get("port") + "?wireFormat.maxInactivityDuration=0").setName("openwire");
        }
        if (o.containsKey("stomp")) b.addConnector("stomp://127.0.0.1:" + o.get("stomp")).setName("stomp");
        return b;
    }

    static KahaDBPersistenceAdapter kaha(Map<String, String> o, File dir) throws Exception {
        KahaDBPersistenceAdapter k = new KahaDBPersistenceAdapter();
        if (dir != null) k.setDirectory(dir);
        k.setJournalMaxFileLength(Integer.parseInt(o.getOrDefault("len", "33554432")));
        k.setCheckpointInterval(Long.parseLong(o.getOrDefault("checkpoint", "5000")));
        k.setCleanupInterval(Long.parseLong(o.getOrDefault("cleanup", "30000")));
        if (o.containsKey("checkCorrupt")) k.setCheckForCorruptJournalFiles(Boolean.parseBoolean(o.get("checkCorrupt")));
        if (o.containsKey("ignoreMissing")) k.setIgnoreMissingJournalfiles(Boolean.parseBoolean(o.get("ignoreMissing")));
        if (o.containsKey("compactAfter")) k.setCompactAcksAfterNoGC(Integer.parseInt(o.get("compactAfter")));
        return k;
    }

    static Map<String, String> args(String[] a, int from) {
        Map<String, String> m = new HashMap<>();
        for (int i = from; i < a.length; i++) {
            int p = a[i].indexOf('=');
            m.put(a[i].substring(0, p), a[i].substring(p + 1));
        }
        return m;
    }

    public static void main(String[] a) throws Exception {
        BrokerService b = build(args(a, 0));
        b.start();
        b.waitUntilStarted();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                b.stop();
                b.waitUntilStopped();
            } catch (Exception e) {
                e.printStackTrace();
            }
        }));
        for (TransportConnector c : b.getTransportConnectors()) {
            System.out.println("listening " + c.getName() + " 127.0.0.1:" + c.getConnectUri().getPort());
        }
        System.out.println("ready");
        System.out.flush();
        Thread.sleep(Long.MAX_VALUE);
    }
}
